"""WHAMR!: WHAM! in rooms. Generate it, and turn it into manifests.

    python -m data_prep.whamr generate --wham=/data/wham --out=/data/whamr \
        [--rooms=FOLDER] [--sample_rates 8000 16000] [--modes min max] [--workers=8]
    python -m data_prep.whamr --data_folder=/data/whamr --save_folder=manifests \
        [--task=mix_both] [--mixture=reverb] [--targets=anechoic]
    python -m data_prep.whamr pool --out=rooms.npz --rooms=2000 [--sample_rate=8000]

`wham` is the set that `data_prep.wham generate` makes, at 16 kHz at least: the rooms
are simulated at that rate. `rooms` holds the public `reverb_params_{tr,cv,tt}.csv`;
a set without its file, or all of them, gets rooms drawn by WHAMR!'s ranges, each by the
name of its mixture. All rooms are written to `metadata/`, in the same form.

Written as float WAV: {mix_clean,mix_single,mix_both,s1,s2}_{anechoic,reverb} and noise,
in the folders of WHAM!. "anechoic" is the direct path alone, so it has the delay of the
reverberant source, and it has the energy that the source has in WHAM!; "reverb" has the
same gain. One channel: the left microphone.

`pool` writes rooms for dynamic mixing (`modules/audio/rooms.py`).

Legend: S source, T sample.
"""

import argparse
import functools
import sys
from collections.abc import Sequence

from data_prep.common.cli import add_prepare, add_versions, as_command, print_manifests
from data_prep.whamr.generate import generate
from data_prep.whamr.manifests import prepare
from data_prep.whamr.pool import make_pool


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate, prepare manifests or make a pool, from the command line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.whamr",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if arguments[:1] in (["generate"], ["pool"]):
        parser.prog += f" {arguments[0]}"
    if arguments[:1] == ["generate"]:
        parser.add_argument("--wham", required=True)
        parser.add_argument("--out", required=True)
        parser.add_argument("--rooms")
        add_versions(parser)
        options = vars(parser.parse_args(arguments[1:]))
        return as_command(functools.partial(generate, **options))
    if arguments[:1] == ["pool"]:
        parser.add_argument("--out", required=True)
        parser.add_argument("--rooms", type=int, required=True)
        parser.add_argument("--sample_rate", type=int, default=8000)
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--workers", type=int)
        options = vars(parser.parse_args(arguments[1:]))
        return as_command(functools.partial(make_pool, **options))
    add_prepare(parser)
    parser.add_argument("--mixture", default="reverb")
    parser.add_argument("--targets", default="anechoic")
    options = vars(parser.parse_args(arguments))
    return as_command(functools.partial(print_manifests, prepare, **options))


if __name__ == "__main__":
    sys.exit(main())
