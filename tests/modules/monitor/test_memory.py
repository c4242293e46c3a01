"""The profile's bytes are those that autograd keeps, and nothing changes under it."""

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import train
from modules.models.htdemucs import HTDemucs
from modules.monitor.memory import MAX_BARS, OUTSIDE, MemoryProfile, draw
from tests.toy import same_weights, weights_of


class Chain(nn.Module):
    """Three layers; the last two may be computed again in the backward."""

    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        self.recompute = recompute
        self.first = nn.Linear(16, 32)
        self.rest = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.recompute:
            return checkpoint(self.rest, x, use_reentrant=False)
        return self.rest(x)


def profiled(model: nn.Module, x: Tensor, folder: Path, steps: int = 1) -> dict:
    optimizer = torch.optim.Adam(model.parameters())
    with MemoryProfile(model, optimizer, folder, steps) as profile:
        model(x).square().mean().backward()
        optimizer.step()
    assert not profile._kept and not any(profile._now.values())
    return read(folder)


def read(folder: Path) -> dict[str, dict[str, str]]:
    with open(folder / "memory.csv", newline="", encoding="utf-8") as file:
        return {row["module"]: row for row in csv.DictReader(file)}


def test_a_chain_of_layers_keeps_exactly_this(tmp_path):
    rows = profiled(Chain(), torch.randn(4, 16), tmp_path)
    saved = {name: int(rows[name]["saved"]) for name in rows if name != "(peak)"}
    assert saved == {
        "first": 4 * 16 * 4,  # its input
        "rest.0": 4 * 32 * 4,  # its input
        "rest.1": 4 * 64 * 4,  # its output, which is rest.2's input as well
        "rest.2": 0,
        OUTSIDE: 4 * 8 * 4,  # what is squared
        "(sum)": 4 * (16 + 32 + 64 + 8) * 4,
    }
    for name, weights in {
        "first": 17 * 32,
        "rest.0": 33 * 64,
        "rest.2": 65 * 8,
    }.items():
        row = rows[name]
        assert int(row["parameters"]) == int(row["gradients"]) == 4 * weights
        assert int(row["optimizer"]) == 2 * 4 * weights + 2 * 4  # and a count for each
        assert row["class"] == "Linear"
    columns = ("parameters", "gradients", "optimizer", "saved")
    assert int(rows["(sum)"]["total"]) == sum(int(rows["(sum)"][c]) for c in columns)
    assert rows["(peak)"]["class"] == "process"
    assert int(rows["(peak)"]["total"]) > 5e7  # Python and torch alone
    assert (tmp_path / "memory.png").read_bytes()[:4] == b"\x89PNG"


def test_checkpointing_keeps_the_input_of_the_block_alone(tmp_path):
    rows = profiled(Chain(recompute=True), torch.randn(4, 16), tmp_path)
    saved = {name: int(row["saved"] or 0) for name, row in rows.items()}
    assert saved["rest.0"] == saved.get("rest.1", 0) == 0
    assert saved["(network)"] == 4 * 32 * 4
    assert saved["(sum)"] == 4 * (16 + 32 + 8) * 4


def test_checkpointing_lowers_what_htdemucs_keeps(tmp_path):
    size = {"channels": 8, "depth": 2, "nfft": 256, "t_layers": 1, "t_heads": 2}
    sums, gradients = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = HTDemucs(
            ["a", "b"], 0.5, 8000, bottom_channels=0, t_dropout=0.0,
            activation_checkpointing=recompute, **size,
        )  # fmt: skip
        rows = profiled(model, torch.randn(1, 2, 4000), tmp_path / str(recompute))
        sums.append(int(rows["(sum)"]["saved"]))
        gradients.append([p.grad for p in model.parameters()])
    assert sums[1] < 0.5 * sums[0]
    assert all(map(torch.equal, *gradients))


def test_frozen_parameters_have_no_gradients(tmp_path):
    model = Chain()
    model.rest.requires_grad_(False)
    rows = profiled(model, torch.randn(4, 16), tmp_path)
    assert rows["rest.0"]["gradients"] == rows["rest.0"]["optimizer"] == "0"
    assert rows["rest.0"]["saved"] == "0"  # its input is for the weight's gradient
    assert int(rows["rest.1"]["saved"]) > 0


def test_it_stops_after_its_steps_and_leaves_no_hook(tmp_path):
    model, x = Chain(), torch.randn(4, 16)
    profile = MemoryProfile(
        model, torch.optim.SGD(model.parameters()), tmp_path, steps=2
    )
    for _ in range(2):
        with profile:
            model(x).sum().backward()
    (tmp_path / "memory.csv").unlink()
    with profile:
        model(torch.randn(400, 16)).sum().backward()
        assert not any(
            m._forward_hooks or m._forward_pre_hooks for m in model.modules()
        )
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert not (tmp_path / "memory.csv").exists()
    assert sum(profile.gradients.values()) == 4 * (17 * 32 + 33 * 64 + 65 * 8)  # once


def test_a_step_that_fails_is_written_too(tmp_path):
    model = Chain()
    profile = MemoryProfile(model, torch.optim.SGD(model.parameters()), tmp_path)
    with pytest.raises(RuntimeError, match="shapes cannot"), profile:
        model.rest(model.first(torch.randn(4, 16)).T)
    assert int(read(tmp_path)["first"]["saved"]) == 4 * 16 * 4
    assert not any(m._forward_hooks for m in model.modules())


def test_many_modules_are_drawn_in_groups(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    shown, barh = [], Axes.barh
    monkeypatch.setattr(
        Axes, "barh", lambda self, names, *a, **k: (
            shown.append(names), barh(self, names, *a, **k)
        )[1],
    )  # fmt: skip
    sizes = {"parameters": 1, "gradients": 0, "optimizer": 0, "saved": 3}
    rows = [
        {"module": f"a{i}.b{j}", **sizes} for i in range(5) for j in range(MAX_BARS)
    ]
    draw(rows, "title", tmp_path / "memory.png")
    assert shown[0] == [f"a{i}" for i in range(5)][::-1]


def test_a_run_with_the_profile_ends_with_the_same_bits(toy_arguments, tmp_path):
    runs = {"plain": False, "profiled": True}
    for name, profile in runs.items():
        options = {"N_epochs": 1, "profile_memory": profile}
        train.main(toy_arguments(output_folder=tmp_path / name, **options))
    assert same_weights(*(weights_of(tmp_path / name) for name in runs))
    assert not (tmp_path / "plain" / "memory.csv").exists()
    assert read(tmp_path / "profiled")["conv"]["class"] == "Conv1d"


def test_the_peak_of_cuda_is_that_of_all_modules_that_were_running(
    tmp_path, monkeypatch
):
    """The order of resets and notes, by a stand-in for the allocator."""
    peaks = iter([10, 20, 30, 90, 40, 50, 60, 70, 80, 75, 5, 5, 95])
    resets = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: next(peaks))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", resets.append)
    model = Chain()
    profile = MemoryProfile(
        model, torch.optim.SGD(model.parameters()), tmp_path, steps=1
    )
    profile.cuda = torch.device("cuda:0")
    with profile:
        model(torch.randn(4, 16)).sum().backward()
    # Notes: on entering and leaving the network, first, rest, rest.0 to rest.2,
    # and after the backward. Each is for the modules that were running before it.
    assert profile.cuda_peaks == {
        "(peak)": 95, "": 90, "first": 30, "rest": 80, "rest.0": 50, "rest.1": 70,
        "rest.2": 75,
    }  # fmt: skip
    assert len(resets) == 14 and next(peaks, None) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_cuda_device(tmp_path):
    rows = profiled(Chain().cuda(), torch.randn(4096, 16, device="cuda"), tmp_path)
    assert int(rows["rest.1"]["saved"]) == 4096 * 64 * 4
    assert int(rows["rest.1"]["cuda_peak"]) >= 4096 * (16 + 32 + 64 + 64) * 4
    assert rows["(peak)"]["class"] == "cuda:0"
    assert int(rows["(peak)"]["total"]) >= int(rows["rest.2"]["cuda_peak"])
