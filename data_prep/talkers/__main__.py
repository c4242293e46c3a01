r"""Make a data set from recordings of single people.

    python -m data_prep.talkers --speakers=FOLDER --out=OUT [--noise=FOLDER] \
        [--num_spks=2] [--sample_rate=8000] [--seconds=5] [--seed=0] [--workers=8]
    python train.py hparams/mossformer2_tiny.yaml --dataset=talkers --data_folder=OUT
    python -m data_prep.talkers prepare --help      its manifests, which train.py makes

`speakers` is any tree of mono WAV and FLAC files at any rate, a folder for each person.
The people are divided among training, validation and test. Mixtures of each set are
made of its own people and its own noises, by the rules of dynamic mixing:

    OUT/{train,valid,test}/{mix_clean,s1,s2[,s3]}  or {mix_both,s1,s2[,s3],noise}
    OUT/{train,valid,test}/utterances/NUMBER.csv   who speaks in which mixture
    OUT/train_speakers/SPEAKER/                    links to the training recordings
    OUT/speakers.csv                               who is in which set

Training draws new mixtures from `train_speakers` in every epoch. Those in `train` say
how long an epoch is, hold the noises, and are there for `--dynamic_mixing=False`.
"""

import functools
import sys

from data_prep.talkers.generate import generate
from data_prep.talkers.manifests import prepare
from modules.runtime.cli import run

NAME = "python -m data_prep.talkers"
main = functools.partial(run, NAME, __doc__, {"generate": generate, "prepare": prepare})

if __name__ == "__main__":
    sys.exit(main())
