r"""WHAM!, WSJ0-2mix in real noise: make manifests of it, or make it.

    python -m data_prep.wham --data_folder=/data/wham --save_folder=results/manifests \
        [--task=mix_both] [--num_spks=2] [--sample_rate=8000] [--mode=min]
    python -m data_prep.wham generate --help     makes it, from WSJ0-2mix and noise

The layout is `wav{8k,16k}/{min,max}/{tr,cv,tt}/{mix_clean,mix_single,mix_both,s1,s2,
noise}`: mix_clean = s1 + s2, mix_single = s1 + noise, mix_both = s1 + s2 + noise.
"""

import functools
import sys

from data_prep.wham.generate import generate
from data_prep.wham.manifests import prepare
from modules.runtime.cli import run

NAME = "python -m data_prep.wham"
main = functools.partial(run, NAME, __doc__, {"prepare": prepare, "generate": generate})

if __name__ == "__main__":
    sys.exit(main())
