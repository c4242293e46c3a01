"""WSJ0-2mix and WSJ0-3mix, or any data set laid out as they are, into manifests.

    python -m data_prep.wsj0mix --data_folder=/data/wsj0-mix/2speakers \
        --save_folder=results/manifests [--num_spks=2] [--sample_rate=8000] [--mode=min]
    python -m data_prep.wsj0mix generate --help     makes them, from WSJ0 and the lists

Three layouts are in use; which one a folder has is found by looking into it, never
from its name:

    wav8k/min/{tr,cv,tt}/{mix,s1,s2[,s3]}                 the original
    {train,valid,test}/{mixture,source1,source2[,source3]}
    {train,val,test}/{mix,s1,s2[,s3]}

A mixture and its sources have the same file name, WAV or FLAC.
"""

import argparse
import sys

from data_prep.common.cli import as_command
from data_prep.wsj0mix.manifests import prepare


def main() -> int:
    """Prepare manifests from the command line; or generate, in a file of its own."""
    command, arguments = sys.argv[1:2], sys.argv[2:]
    if command == ["generate"]:
        from data_prep.wsj0mix.generate import main as generate

        return generate(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.wsj0mix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data_folder", required=True)
    parser.add_argument("--save_folder", required=True)
    parser.add_argument("--num_spks", type=int, default=2)
    parser.add_argument("--sample_rate", type=int, default=8000)
    parser.add_argument("--mode", default="min")
    args = parser.parse_args(arguments if command == ["prepare"] else sys.argv[1:])

    def run() -> None:
        for split, path in prepare(**vars(args)).items():
            print(f"{split}: {path}")

    return as_command(run)


if __name__ == "__main__":
    sys.exit(main())
