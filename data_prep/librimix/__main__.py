r"""Libri2Mix and Libri3Mix: make manifests of them, or make them.

    python -m data_prep.librimix --data_folder=/data/Libri2Mix --save_folder=manifests \
        [--num_spks=2] [--sample_rate=8000] [--mode=min] [--task=mix_clean] \
        [--train_set=train-360]
    python -m data_prep.librimix generate --help     makes them, from LibriSpeech

The layout is that of the original (Cosentino et al., arXiv 2005.11262):

    wav{8k,16k}/{min,max}/{train-100,train-360,dev,test}/
        {mix_clean,mix_both,mix_single,s1,s2[,s3],noise}/<utterance>_<utterance>.wav

`mix_clean` is the sum of the talkers, `mix_both` that and the noise, `mix_single` the
first talker and the noise.
"""

import functools
import sys

from data_prep.librimix.generate import generate
from data_prep.librimix.manifests import prepare
from modules.runtime.cli import run

NAME = "python -m data_prep.librimix"
main = functools.partial(run, NAME, __doc__, {"prepare": prepare, "generate": generate})

if __name__ == "__main__":
    sys.exit(main())
