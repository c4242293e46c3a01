"""The GPU benchmark, rehearsed on a CPU: its table, its cells, those that fail."""

import time
from collections import Counter

import pytest
import torch
from torch import nn

from benchmarks import gpu, models


@pytest.fixture(autouse=True)
def no_group_stays():
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_a_table_beside_speechbrain(tmp_path, capsys):
    out = tmp_path / "gpu.md"
    small = ["--device=cpu", "--layers=1", "--samples=800", "--seconds=-1"]
    variants = ["reference fp32", "ours fp32", gpu.DISTRIBUTED]
    gpu.main(["--models", "sepformer", "--variants", *variants, *small, f"--out={out}"])
    text = out.read_text()
    assert text.strip() in capsys.readouterr().out
    assert "### sepformer, 800 samples" in text
    # No time is left, and each missing cell is named once.
    for name in variants:
        assert text.count(f"{name}, batch 1: no time left") == 1


@pytest.mark.parametrize("variant", ["ours bf16, checkpointing", gpu.DISTRIBUTED])
def test_a_cell_is_timed(variant):
    job = {"model": "sepformer", "samples": 800, "layers": 1, "side": "ours"}
    cell = gpu.Cell(job | {"device": "cpu"} | gpu.VARIANTS[variant])
    assert cell.run(2, 2)[gpu.RATE] > 0
    assert all(weight.grad is None for weight in cell.network.parameters())
    cell.peaks = {1: 3, 4: 0}
    assert cell.largest() == 0


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (torch.OutOfMemoryError, "does not fit"),
        (RuntimeError("no kernel\nmore"), "RuntimeError: no kernel"),
        (RuntimeError, "RuntimeError: "),
        (None, "takes over 0 s"),
    ],
)
def test_a_failure_is_named_and_ends_nothing(fault, why, monkeypatch):
    monkeypatch.setattr(gpu, "CELL", 0.05)

    def cell():
        if fault is not None:
            raise fault
        time.sleep(30)

    missing = []
    with gpu.alarm():
        assert gpu.attempt(cell, 1, time.monotonic() + 9, missing, "x") is None
    assert missing == [f"x: {why}"]


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        ("mossformer2", {"GatedAttention": 24, "MemoryBlock": 24}),
        ("sepformer", {"TransformerLayer": 32}),
        ("mel_roformer", {"Transformer": 12}),
        ("tf_locoformer", {"Path": 12}),
    ],
)
def test_blocks_that_repeat_are_compiled(model, kinds, monkeypatch):
    seen = Counter()
    record = lambda block: seen.update([type(block).__name__])  # noqa: E731
    monkeypatch.setattr(nn.Module, "compile", record)
    with torch.device("meta"), torch._dynamo.config.patch(recompile_limit=8):
        job = {"model": model, "samples": 800, "layers": None, "side": "ours"}
        gpu.compile_blocks(models.build(job))
    assert seen == kinds
