"""Write the model that a run tested as a folder to pass on.

    python export.py results/htdemucs_lora/1234 --out=techhouse

The folder holds weights, configuration and a README, and no code;
`modules/weights/export.py` says more, and how to load it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from modules.runtime.cli import run
from modules.weights.export import export


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit status."""
    return run("python export.py", __doc__, {"export": export}, arguments, _report)


def _report(folder: Path) -> None:
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    print(f"{folder}: {size / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
