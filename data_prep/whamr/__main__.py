r"""WHAMR!, WHAM! in rooms: make manifests of it, make it, or make rooms.

    python -m data_prep.whamr --data_folder=/data/whamr --save_folder=manifests \
        [--task=mix_both] [--mixture=reverb] [--targets=anechoic]
    python -m data_prep.whamr generate --help     makes it, from WHAM!
    python -m data_prep.whamr pool --help         makes rooms for dynamic mixing

The layout is that of WHAM! with {mix_clean,mix_single,mix_both,s1,s2}_{anechoic,reverb}
and noise.
"""

import functools
import sys

from data_prep.whamr.generate import generate
from data_prep.whamr.manifests import prepare
from data_prep.whamr.pool import make_pool
from modules.runtime.cli import run

NAME = "python -m data_prep.whamr"
main = functools.partial(
    run, NAME, __doc__, {"prepare": prepare, "generate": generate, "pool": make_pool}
)

if __name__ == "__main__":
    sys.exit(main())
