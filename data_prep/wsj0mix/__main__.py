r"""WSJ0-2mix and WSJ0-3mix, or any set laid out like them: make manifests, or make it.

    python -m data_prep.wsj0mix --data_folder=/data/wsj0-mix/2speakers \
        --save_folder=results/manifests [--num_spks=2] [--sample_rate=8000] [--mode=min]
    python -m data_prep.wsj0mix generate --help     makes it, from WSJ0 and the lists

Three layouts are in use; which one a folder has is found by looking into it:

    wav8k/min/{tr,cv,tt}/{mix,s1,s2[,s3]}                 the original
    {train,valid,test}/{mixture,source1,source2[,source3]}
    {train,val,test}/{mix,s1,s2[,s3]}

A mixture and its sources have the same file name, WAV or FLAC.
"""

import functools
import sys

from data_prep.wsj0mix.generate import generate
from data_prep.wsj0mix.manifests import prepare
from modules.runtime.cli import run

NAME = "python -m data_prep.wsj0mix"
main = functools.partial(run, NAME, __doc__, {"prepare": prepare, "generate": generate})

if __name__ == "__main__":
    sys.exit(main())
