"""WHAM!: WSJ0-2mix in real noise. Generate it, and turn it into manifests.

    python -m data_prep.wham generate --wsj0mix=/data/wsj0-mix/2speakers \
        --wham_noise=/data/wham_noise --out=/data/wham \
        [--sample_rates 8000 16000] [--modes min max] [--workers=8]
    python -m data_prep.wham --data_folder=/data/wham --save_folder=results/manifests \
        [--task=mix_both] [--num_spks=2] [--sample_rate=8000] [--mode=min]

`wham_noise` is the noise archive: `{tr,cv,tt}/*.wav`, 16 kHz, of which the left channel
is used. With its `metadata/scaling_{tr,cv,tt}.npz` the set is WHAM! itself. Without,
or with other noise, it is drawn by WHAM!'s rules, each mixture by its name: the first
speaker is U(-3, 6) dB above the noise in BS.1770 loudness, the noise begins U(0, 2) s
before the speech and ends as much after it, and where a peak would pass 0.95 everything
is turned down. What was drawn is written to `metadata/placement_{tr,cv,tt}.csv`, which
`--placement=FOLDER` takes in place of a draw.

Written as float WAV: `wav{8k,16k}/{min,max}/{tr,cv,tt}/{mix_clean,mix_single,mix_both,
s1,s2,noise}`; mix_clean = s1 + s2, mix_single = s1 + noise, mix_both = s1 + s2 + noise.

Legend: S source, T sample.
"""

import argparse
import functools
import sys
from collections.abc import Sequence

from data_prep.common.cli import add_prepare, add_versions, as_command, print_manifests
from data_prep.wham.generate import generate
from data_prep.wham.manifests import prepare


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate, or prepare manifests, from the command line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.wham",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if arguments[:1] != ["generate"]:
        add_prepare(parser)
        options = vars(parser.parse_args(arguments))
        return as_command(functools.partial(print_manifests, prepare, **options))
    parser.prog += " generate"
    for name in ("wsj0mix", "wham_noise", "out"):
        parser.add_argument(f"--{name}", required=True)
    add_versions(parser)
    parser.add_argument("--placement")
    options = vars(parser.parse_args(arguments[1:]))
    return as_command(functools.partial(generate, **options))


if __name__ == "__main__":
    sys.exit(main())
