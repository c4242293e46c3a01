"""The learning rate of each optimizer step: its factor, and what a run really uses."""

import math
from pathlib import Path

import pytest
import torch

import train
from recipes.schedule import RateFactor
from tests.toy import make_songs

TOY = str(Path(__file__).parents[1] / "toy_music.yaml")


def factors(warmup_steps: int, decay: str, total: int) -> list[float]:
    factor = RateFactor(warmup_steps, decay)
    return [factor.at(step, total) for step in range(total)]


@pytest.mark.parametrize("decay", ["none", "linear", "cosine"])
def test_warm_up_is_a_line_through_zero_that_reaches_one_at_its_last_step(decay):
    values = factors(5, decay, 20)
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert values[5] == 1.0, "the decay starts at 1"
    assert factors(1, decay, 20)[:2] == [1.0, 1.0]
    assert factors(0, decay, 20)[0] == 1.0


def test_decay_ends_one_step_after_the_last():
    assert factors(4, "none", 8)[4:] == [1.0] * 4
    assert factors(4, "linear", 8)[4:] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    half = math.sqrt(0.5) / 2
    assert factors(4, "cosine", 8)[4:] == pytest.approx(
        [1.0, 0.5 + half, 0.5, 0.5 - half]
    )
    for decay in ("linear", "cosine"):
        after = [RateFactor(4, decay).at(step, total=8) for step in (8, 9, 80)]
        assert after == pytest.approx([0.0] * 3), "a run may be given more epochs"


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_songs(tmp_path_factory.mktemp("songs"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Two epochs of four steps, the rate of the second one a tenth of the first's.
        ({}, [0.01] * 4 + [0.001] * 4),
        (
            {"warmup_steps": 6, "lr_decay": "linear"},
            [
                *(0.01 * n / 6 for n in (1, 2, 3, 4)),
                0.001 * 5 / 6,
                0.001,
                0.001,
                0.0005,
            ],
        ),
        # Three batches, or the tail of the epoch, are one step.
        (
            {"warmup_steps": 3, "grad_accumulation_factor": 3},
            [0.01 / 3, 0.02 / 3, 0.001, 0.001],
        ),
    ],
)
def test_a_run_steps_with_the_rates_of_its_schedule(
    songs, tmp_path, monkeypatch, options, expected
):
    rates = []
    step = torch.optim.Adam.step

    def spy(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    settings = {
        "data_folder": songs, "valid_tracks": 1, "output_folder": tmp_path / "run",
        "num_workers": 0, "tensorboard": False, "device": "cpu", "n_audio_to_save": 0,
        "clip_grad_norm": -1, **options,
    }  # fmt: skip
    train.main([TOY, *(f"--{name}={value}" for name, value in settings.items())])
    assert rates == pytest.approx(expected)
