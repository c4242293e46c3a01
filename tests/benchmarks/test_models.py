"""The model benchmark: its table, and its refusal to compare unequal networks."""

import importlib.util

import pytest
import torch

from benchmarks import models

SMALL = ["--layers=1", "--samples=2000", "--steps=1", "--repeats=1"]


def test_sepformer_beside_speechbrain(tmp_path, capsys):
    out = tmp_path / "table.md"
    variants = ["inference fp32", "train bf16, checkpointing"]
    models.main(
        ["--models", "sepformer", "--variants", *variants, f"--out={out}", *SMALL]
    )
    text = out.read_text()
    assert text.strip() in capsys.readouterr().out
    rows = {
        cells[1]: [float(cell) for cell in cells[2:8]]
        for line in text.splitlines()
        if (cells := [cell.strip() for cell in line.split("|")])[1:2]
        and cells[1] in variants
    }
    assert list(rows) == variants
    for reference_s, ours_s, _, reference_mb, ours_mb, ratio_mb in rows.values():
        assert reference_s > 0 and ours_s > 0
        assert ratio_mb == pytest.approx(ours_mb / reference_mb, abs=0.01)


def test_unequal_networks_are_not_compared(monkeypatch):
    def off(job: dict, reference: str | None) -> dict[str, float]:
        return {"max_difference": 0.1, "peak": 1.0, "bf16_snr_db": 20.0}

    monkeypatch.setattr(models, "in_fresh_process", off)
    with pytest.raises(SystemExit, match="differs from its reference by 1.0e-01"):
        models.main(["--models", "sepformer", *SMALL])


def test_a_missing_reference_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install --no-deps clearvoice"):
        models.reference_mossformer2(1)


def test_the_reference_gives_the_shape_that_ours_gives():
    mixture_BT = torch.zeros(1, 500)
    shapes = [
        models.forward(network.eval(), mixture_BT).shape
        for network in (models.ReferenceSepFormer(1), models.our_sepformer(1, False))
    ]
    assert shapes == [(1, 2, 500)] * 2
