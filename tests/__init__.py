"""The test suite, which mirrors the folders that it tests.

`SHARED` holds real audio and reference outputs; tests that need it skip without it.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SEPARATION_SHARED", ROOT.parent / "shared"))
