"""Fetch published weights from huggingface.co: `hf:ORGANISATION/NAME[@REVISION]`.

Only the files of one known layout are fetched, and they are read as data, as a local
folder is. They stay in the hub's cache (`HF_HOME`), where an interrupted download goes
on and where they are found without a network.
"""

import re
from pathlib import Path

from modules.runtime.errors import PretrainedError
from modules.weights.pretrained import LAYOUTS, files_of_a_layout

PREFIX = "hf:"


def fetch(place: str) -> Path:
    """Return the folder of a repository's weights, downloaded if it is not there.

    A PretrainedError says that there is no such repository or revision, that it holds
    no known layout, or that it cannot be reached and was never fetched.
    """
    # It takes a second to import, and most runs load a folder.
    from huggingface_hub import HfApi, errors, snapshot_download

    name, _, given = place.removeprefix(PREFIX).partition("@")
    revision = given or None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise PretrainedError(f"model: {place}: use hf:ORGANISATION/NAME[@REVISION]")
    try:
        found = HfApi().model_info(name, revision=revision)
        held = [entry.rfilename for entry in found.siblings or ()]
        chosen = files_of_a_layout(held)
        if not chosen:
            raise PretrainedError(
                f"model: {place} holds no known layout of weights (it has: "
                f"{', '.join(held[:20]) or 'nothing'}); known are "
                + ", ".join(
                    " + ".join(made_of) for row in LAYOUTS for made_of, _ in row.hub
                )
            )
        return Path(snapshot_download(name, revision=revision, allow_patterns=chosen))
    except errors.RepositoryNotFoundError as error:  # and those that ask for a login
        raise PretrainedError(
            f"model: {place}: no such repository, or a private one (log in by: hf "
            "auth login)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise PretrainedError(f"model: {place}: has no revision {revision}") from error
    except errors.HFValidationError as error:
        raise PretrainedError(f"model: {place}: {_first_line(error)}") from error
    except (errors.HTTPError, OSError) as error:
        reason = _first_line(error)
    try:
        local = snapshot_download(name, revision=revision, local_files_only=True)
        return Path(local)
    except errors.IncompleteSnapshotError as error:  # the other files were not wanted
        return Path(error.snapshot_path)
    except OSError as error:
        raise PretrainedError(
            f"model: {place}: cannot be reached ({reason}) and was not fetched before"
        ) from error


def _first_line(error: Exception) -> str:
    """Return the first line of a message of the hub's library."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")
