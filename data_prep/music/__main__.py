r"""Music in stems, a folder for each track, into manifests.

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

import functools
import sys

from data_prep.music.manifests import prepare
from modules.runtime.cli import run

main = functools.partial(run, "python -m data_prep.music", __doc__, prepare)

if __name__ == "__main__":
    sys.exit(main())
