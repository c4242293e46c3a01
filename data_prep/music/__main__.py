r"""Music in stems, a folder for each track or each stem, into manifests.

    python -m data_prep.music --data_folder=/data/musdb18hq --save_folder=MANIFESTS \
        [--sources=drums,bass,other,vocals] [--valid_tracks=8] [--test_folder=FOLDER]

These layouts are in use; which one a folder has is found by looking into it:

    {train[,valid][,test]}/<track>/{drums,bass,other,vocals}.wav   MUSDB18-HQ, your own
    <track>/{drums,bass,other,vocals}.wav                          SDXDB23
    [<split>/]{drums,bass,other,vocals}/<track>.wav                a folder a stem

The sources may have any names; files are WAV or FLAC. `mixture.wav` is used where it
exists; elsewhere the mixture is the sum of the stems. Other files are ignored.

Without a folder `valid`, tracks for validation are held out of the training set: the 14
that MUSDB18's authors chose, or a share of any other set. Held-out tracks of a set with
label noise are noisy as well: they can tell checkpoints apart, but their score means
nothing.
"""

import functools
import sys

from data_prep.music.manifests import prepare
from modules.runtime.cli import run

main = functools.partial(run, "python -m data_prep.music", __doc__, prepare)

if __name__ == "__main__":
    sys.exit(main())
