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


def test_music_is_timed_at_each_of_its_lengths(monkeypatch, capsys):
    jobs = []

    def result(job: dict, reference: str | None) -> dict[str, float]:
        jobs.append(job)
        same = {"max_difference": 0.0, "peak": 1.0, "bf16_snr_db": 40.0}
        return same if job["side"] == "both" else {"seconds": 2.0, "peak_mb": 50.0}

    monkeypatch.setattr(models, "in_fresh_process", result)
    variants = ["train fp32, no attention dropout", "inference bf16"]
    models.main(
        ["--models", "htdemucs", "sepformer", "--repeats=1", "--variants", *variants]
    )
    text = capsys.readouterr().out
    for length in (176400, 343980):
        assert f"| train fp32, no attention dropout, {length} samples | 2.00 |" in text
    assert text.count("| inference bf16 | 2.00 ") == 2
    assert text.count("no attention dropout") == 2  # SepFormer has no such variant
    both, *rest = (job for job in jobs if job["model"] == "htdemucs")
    assert both["samples"] == 176400
    assert [(job["side"], job["train"], job["samples"]) for job in rest] == [
        ("reference", False, 1323000),
        ("ours", False, 1323000),
        ("reference", True, 176400),
        ("ours", True, 176400),
        ("reference", True, 343980),
        ("ours", True, 343980),
    ]
    assert rest[3]["attention_dropout"] is False
    assert "attention_dropout" not in rest[2]


def test_htdemucs_beside_demucs(capsys):
    for name in ("demucs", "einops", "tqdm"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (development only)")
    models.main(
        ["--models", "htdemucs", "--variants", "inference fp32", "train fp32", *SMALL]
    )
    rows = capsys.readouterr().out
    assert "| inference fp32 |" in rows and "| train fp32 |" in rows


def test_missing_demucs_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install --no-deps demucs"):
        models.reference_htdemucs(1, 44100)


@pytest.mark.parametrize("job", [{"side": "ours"}, {"side": "ours", "samples": 20_000}])
def test_music_is_separated_in_segments(job):
    job = {"model": "htdemucs", "samples": 5000, **job}
    model = torch.nn.Module()
    model.sources, model.sample_rate, model.segment = ["a"], 44100, 0.1
    model.forward = lambda mixture_BCT: mixture_BCT[:, None]
    mixture = models.make_mixture(job)
    assert mixture.shape == (1, 2, job["samples"])
    estimate = models.infer(job, model, mixture)
    torch.testing.assert_close(estimate, mixture[:, None])
