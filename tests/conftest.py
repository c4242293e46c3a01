"""Fixtures shared by all tests."""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.toy import make_corpus

ROOT_LEVEL, EXCEPT_HOOK = logging.getLogger().level, sys.excepthook


def forget_logging() -> None:
    """Undo what `create_experiment_directory` does to the process's logging."""
    root = logging.getLogger()
    root.setLevel(ROOT_LEVEL)
    sys.excepthook = EXCEPT_HOOK
    for handler in list(root.handlers):
        origin = type(handler).__module__
        if origin.startswith("speechbrain") or (
            isinstance(handler, logging.FileHandler)
            and not origin.startswith("_pytest")
        ):
            root.removeHandler(handler)
            handler.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest files, so that no process ends with them alone."""
    long = ("tests/e2e/", "tests/benchmarks/")
    items.sort(key=lambda item: not item.nodeid.startswith(long))


@pytest.fixture(autouse=True)
def quiet_logging() -> Iterator[None]:
    """Start and leave every test with logging as pytest found it."""
    forget_logging()  # a fixture of the module may have run an experiment
    yield
    forget_logging()


@pytest.fixture(autouse=True, scope="module")
def seeded_module() -> None:
    """Random weights of a file's fixtures do not depend on the files before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def seeded_test() -> None:
    """Nor those of a test on the tests before it."""
    torch.manual_seed(1)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny wsj0-mix tree."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def toy_arguments(corpus: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Command line of a run of a second or two; keyword arguments override."""

    def arguments(**overrides: object) -> list[str]:
        settings: dict[str, object] = {
            "data_folder": corpus,
            "output_folder": tmp_path / "run",
            "segment_seconds": 0.25,
            "N_epochs": 2,
            "num_workers": 0,
            "tensorboard": False,
            "device": "cpu",
            "n_audio_to_save": 1,
            "log_every": 1,
            **overrides,
        }
        flags = [name for name, value in settings.items() if value is None]
        values = {name: value for name, value in settings.items() if value is not None}
        return [
            str(Path(__file__).parent / "toy.yaml"),
            *(f"--{name}={value}" for name, value in values.items()),
            *(f"--{name}" for name in flags),
        ]

    return arguments
