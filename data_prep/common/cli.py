"""Command lines of the data preparation."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from modules.runtime.errors import DataError
from modules.runtime.files import one_line


def as_command(command: Callable[[], object]) -> int:
    """Run a command-line tool; one line instead of a traceback where that says all.

    Returns
    -------
    int
        Exit status: 0, 1 after a `DataError` or an `OSError`, 130 after Ctrl-C.
    """
    try:
        command()
    except (DataError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    return 0


def command_line(generate: Callable[..., Path], defaults: dict, doc: str) -> int:
    """Run a generator from the command line: `--out` and one option a parameter.

    Returns
    -------
    int
        Exit status.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--out", required=True)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    arguments = vars(parser.parse_args())
    try:
        print(generate(arguments.pop("out"), **arguments))
    except (DataError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


def add_versions(parser: argparse.ArgumentParser) -> None:
    """Options that every generator of several versions has."""
    parser.add_argument("--sample_rates", type=int, nargs="+", default=[8000, 16000])
    parser.add_argument("--modes", nargs="+", default=["min", "max"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int)


def add_prepare(parser: argparse.ArgumentParser) -> None:
    """Options of `prepare`."""
    parser.add_argument("--data_folder", required=True)
    parser.add_argument("--save_folder", required=True)
    parser.add_argument("--num_spks", type=int, default=2)
    parser.add_argument("--sample_rate", type=int, default=8000)
    parser.add_argument("--mode", default="min")
    parser.add_argument("--task", default="mix_both")


def print_manifests(prepare: Callable[..., dict[str, str]], **options: object) -> None:
    """Prepare, and say where the manifests are."""
    for split, path in prepare(**options).items():
        print(f"{split}: {path}")
