"""Every error whose message is all that a user needs.

Each message names the file, key or value and says what to do. `train.py` and the other
commands print it as one line; any other exception is a bug and shows its traceback.
"""

from collections.abc import Sequence

from modules.runtime.terminal import escaped

NAMED = 5  # names in a message


class UserError(Exception):
    """Base of the errors below; names from a stranger's files are escaped in it."""

    def __str__(self) -> str:
        return escaped(super().__str__())


class DataError(UserError, ValueError):
    """Data cannot be used; the message names file and row."""


class AudioError(DataError):
    """A file cannot be used as audio."""


def first_of(
    names: Sequence[str], most: int = NAMED, total: int = 0, between: str = ", "
) -> str:
    """Join the first names, and say how many more there are, in all or of a `total`.

    >>> first_of(["a", "b"]), first_of(["a", "b"], most=1), first_of(["a"], total=9)
    ('a, b', 'a and 1 more', 'a and 8 more')
    """
    more = (total or len(names)) - len(names[:most])
    return between.join(names[:most]) + (f" and {more} more" if more else "")


def refuse(faults: Sequence[str]) -> None:
    """Raise a DataError for the first of some faults, if there are any."""
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise DataError(faults[0] + more)


class HparamsError(UserError, ValueError):
    """A key, value or file of the settings is wrong."""


class LoraError(UserError, ValueError):
    """Adapters cannot be made, saved or loaded."""


class PretrainedError(UserError, ValueError):
    """Pretrained weights cannot be used."""


class ExportError(UserError, ValueError):
    """A run or a folder cannot be exported or loaded."""


class FolderInUse(UserError, RuntimeError):
    """Another job holds the folder."""


class CheckpointSaveError(UserError, RuntimeError):
    """Nothing was saved (disk full, read-only); earlier checkpoints are intact."""


class NonFiniteWeights(UserError, RuntimeError):
    """A tensor to be saved holds NaN or Inf."""


class DamagedCheckpoint(UserError, RuntimeError):
    """A checkpoint is not as it was saved."""


class CheckpointMismatch(UserError, RuntimeError):
    """A checkpoint was saved with other settings."""


class NonFiniteTraining(UserError, RuntimeError):
    """Too many consecutive optimizer steps were not finite."""


class NothingLearned(UserError, RuntimeError):
    """Too many consecutive epochs trained on nothing, moved nothing, or diverged."""
