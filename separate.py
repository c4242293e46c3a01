"""Separate audio files into their voices or stems.

    python separate.py MODEL INPUT... --out=FOLDER
    python separate.py results/htdemucs/1234 songs --out=stems --stems=vocals --rest

MODEL is the folder of a run or of an exported model, or published weights on disk;
INPUT are files or folders. Each stem is written to FOLDER/NAME/STEM.wav at the rate and
level of its mixture. The same command again does what is missing.
"""

import sys
from collections.abc import Sequence

from modules.runtime.allocation import keep_freed_memory
from modules.runtime.cli import run
from recipes.separate import separate


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit status."""
    return run("python separate.py", __doc__, separate, arguments, int)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main(sys.argv[1:]))
