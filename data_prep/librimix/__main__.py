"""Libri2Mix and Libri3Mix: manifests, and the mixtures themselves.

    python -m data_prep.librimix --data_folder=/data/Libri2Mix --save_folder=manifests \
        [--num_spks=2] [--sample_rate=8000] [--mode=min] [--task=mix_clean] \
        [--train_set=train-360]

    python -m data_prep.librimix generate --help     mixtures from LibriSpeech

The layout is that of the original (Cosentino et al., arXiv 2005.11262):

    wav{8k,16k}/{min,max}/{train-100,train-360,dev,test}/
        {mix_clean,mix_both,mix_single,s1,s2[,s3],noise}/<utterance>_<utterance>.wav

`mix_clean` is the sum of the talkers, `mix_both` that and the noise, `mix_single` the
first talker and the noise.
"""

import argparse
import logging
import sys

from data_prep.common.cli import as_command
from data_prep.librimix import generate as librimix_generate
from data_prep.librimix.manifests import prepare


def _prepare_command(arguments: list[str]) -> None:
    """`prepare` from the command line."""
    parser = argparse.ArgumentParser(prog="data_prep.librimix", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data_folder", required=True)
    parser.add_argument("--save_folder", required=True)
    parser.add_argument("--num_spks", type=int, default=2)
    parser.add_argument("--sample_rate", type=int, default=8000)
    parser.add_argument("--mode", default="min")
    parser.add_argument("--task", default="mix_clean")
    parser.add_argument("--train_set")
    for split, path in prepare(**vars(parser.parse_args(arguments))).items():
        print(f"{split}: {path}")


def main(arguments: list[str] | None = None) -> int:
    """Prepare or generate; return the exit status."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["generate"]:
        return as_command(lambda: librimix_generate.command(arguments[1:]))
    return as_command(lambda: _prepare_command(arguments))


if __name__ == "__main__":
    sys.exit(main())
