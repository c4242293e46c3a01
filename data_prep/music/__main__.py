"""Music in stems, a folder for each track, into manifests.

    python -m data_prep.music --data_folder=/data/musdb18hq --save_folder=MANIFESTS \
        [--sources=drums,bass,other,vocals] [--valid_tracks=8] [--test_folder=FOLDER]

Two layouts are in use; which one a folder has is found by looking into it:

    {train[,valid][,test]}/<track>/{drums,bass,other,vocals}.wav   MUSDB18-HQ, your own
    <track>/{drums,bass,other,vocals}.wav                          SDXDB23

The sources are named by `sources` and may be any; WAV or FLAC. `mixture.wav` is used
where it is there and is else the sum of the stems. Other files are ignored.

Where there is no folder `valid`, tracks for validation are held out of the training
set: the 14 that MUSDB18's authors chose, or a share of any other set. Those of a set
with label noise are noisy as well: they rank checkpoints well enough, but their score
is none.
"""

import argparse
import logging
import sys

from data_prep.music.manifests import SOURCES, prepare
from modules.runtime.errors import DataError
from modules.runtime.files import one_line


def main() -> int:
    """Prepare manifests from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.music",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data_folder", required=True)
    parser.add_argument("--save_folder", required=True)
    parser.add_argument("--sources", default=",".join(SOURCES))
    parser.add_argument("--valid_tracks", type=int)
    parser.add_argument("--test_folder")
    parser.add_argument("--train_stems")
    parser.add_argument("--sample_rate", type=int)
    args = vars(parser.parse_args())
    args["sources"] = args["sources"].split(",")
    try:
        for split, path in prepare(**args).items():
            print(f"{split}: {path}")
    except (DataError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
