"""How often a training step waits for the device: once, to read what was chosen.

No GPU is needed: on one, what is counted here would wait.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import train
from recipes.separation import Separation
from tests.toy import make_songs

# Each brings values to the host, or brings them from there.
READS = ("item", "tolist", "cpu", "numpy", "new_tensor")
READS += ("__bool__", "__int__", "__float__", "__index__")
# These learn of the device how much they return.
SIZES = ("_local_scalar_dense", "nonzero", "masked_select", "unique")


class Waits(TorchDispatchMode):
    """Counts by step what would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Counter[str]] = []
        self.counts = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        places = args[1] if name in ("index", "index_put_") else ()
        by_mask = any(p is not None and p.dtype == torch.bool for p in places)
        if self.counts and (name in SIZES or by_mask):
            self.steps[-1][name] += 1
        return func(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def counting(self, on: bool) -> Iterator[None]:
        before, self.counts = self.counts, on
        yield
        self.counts = before

    def read_by(self, name: str) -> Callable:
        """Return the method of a tensor, which is counted, and nothing within it."""
        method = getattr(torch.Tensor, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.counts:
                self.steps[-1][name] += 1
            with self.counting(False):
                return method(*args, **kwargs)

        return counted


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Count in every `fit_batch`, but not in Adam, whose counters are on the host."""
    waits, fit_batch, adam = Waits(), Separation.fit_batch, torch.optim.Adam.step

    def counted_batch(brain: Separation, batch: Any) -> torch.Tensor:
        waits.steps.append(Counter())
        with waits, waits.counting(True):
            return fit_batch(brain, batch)

    def adams_step(optimizer: torch.optim.Adam) -> None:
        with waits.counting(False):
            adam(optimizer)

    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, waits.read_by(name))
    monkeypatch.setattr(Separation, "fit_batch", counted_batch)
    monkeypatch.setattr(torch.optim.Adam, "step", adams_step)
    return waits


def test_speech_waits_once_a_step(toy_arguments, waits):
    train.main(toy_arguments(N_epochs=1, ema_decay=0.9))
    assert waits.steps == [{"tolist": 1}] * 6


@pytest.mark.parametrize("rule", ["none", "ccom", "pooled", "running"])
def test_music_waits_once_a_step(rule: str, tmp_path: Path, waits: Waits):
    toy = str(Path(__file__).parents[1] / "toy_music.yaml")
    settings = {
        "data_folder": make_songs(tmp_path / "songs"),
        "output_folder": tmp_path / "run",
        "truncation": rule,
        "loss_memory": 8,
        "num_workers": 0,
        "tensorboard": False,
        "n_audio_to_save": 0,
        "device": "cpu",
        "relative_to_level": True,
    }
    train.main([toy, *(f"--{name}={value}" for name, value in settings.items())])
    assert len(waits.steps) > 4 and all(step == {"tolist": 1} for step in waits.steps)
