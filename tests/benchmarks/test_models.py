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
    assert "1 of 8 layers, 2000 samples" in text
    rows = {
        cells[1]: cells[2:8]
        for line in text.splitlines()
        if (cells := [cell.strip() for cell in line.split("|")])[3:4]
    }
    first, second = variants
    assert list(rows)[2:] == [
        *("inference reference", first),
        *("train reference", second),
    ]
    for name, theirs in ((first, "inference reference"), (second, "train reference")):
        *_, ours_mb, ratio_mb = rows[name]
        assert float(rows[theirs][0]) > 0 and rows[theirs][1] == ""
        assert float(ratio_mb) == pytest.approx(
            float(ours_mb) / float(rows[theirs][4]), rel=0.02, abs=0.01
        )


def test_unequal_networks_are_not_compared(monkeypatch):
    def off(job: dict, reference: list[str]) -> dict[str, float]:
        return {"max_difference": 0.1, "peak": 1.0, "bf16_snr_db": 20.0}

    monkeypatch.setattr(models, "in_fresh_process", off)
    with pytest.raises(SystemExit, match="differs from its reference by 1.0e-01"):
        models.main(["--models", "sepformer", *SMALL])


@pytest.mark.parametrize(
    "model, package",
    [
        ("mossformer2", "clearvoice"),
        ("htdemucs", "demucs"),
        ("mel_roformer", "msst"),
        ("bs_roformer_0.3.10", "bs-roformer"),
    ],
)
def test_a_missing_reference_says_how_to_install_it(monkeypatch, model, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=f"pip install --no-deps {package}=="):
        models.build({"model": model, "side": "reference", "samples": 44100})


@pytest.mark.parametrize("model", ["bs_roformer", "bs_roformer_0.3.10", "scnet"])
def test_music_beside_its_reference(model):
    for name in ("msst", "bs_roformer", "einops", "beartype", "rotary_embedding_torch"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (development only)")
    whole_hops = {"model": model, "layers": 1, "samples": 11 * 441}
    same = models.compare(whole_hops)
    assert same["max_difference"] <= 1e-5 * same["peak"]


def test_the_reference_gives_the_shape_that_ours_gives():
    mixture_BT = torch.zeros(1, 500)
    for side in ("reference", "ours"):
        network = models.build({"model": "sepformer", "side": side, "layers": 1})
        assert models.forward(network.eval(), mixture_BT).shape == (1, 2, 500)


def test_rows_take_turns_within_the_budget(monkeypatch, capsys):
    jobs = []

    def result(job: dict, reference: list[str]) -> dict[str, float]:
        jobs.append(job)
        same = {"max_difference": 0.0, "peak": 1.0, "bf16_snr_db": 40.0}
        figures = {"CPU s": 2.0, "wall s": 2.0, "step MB": 50.0}
        return same if job["side"] == "both" else figures

    monkeypatch.setattr(models, "in_fresh_process", result)
    variants = ["train fp32, no attention dropout", "inference bf16"]
    chosen = ["--models", "htdemucs", "sepreformer", "--variants", *variants]
    models.main([*chosen, "--budget=0", "--repeats=9"])
    text = capsys.readouterr().out
    assert text.count("| inference bf16 | 2 | 1.00 |") == 1  # beside demucs
    assert text.count("| inference bf16 | 2 |  |") == 1  # no reference
    assert text.count("no attention dropout") == 1  # SepReformer has no such variant
    both, *rest = (job for job in jobs if job["model"] == "htdemucs")
    assert both["samples"] == 343980
    assert [(job["side"], job["train"], job["samples"]) for job in rest] == [
        ("reference", False, 661500),
        ("ours", False, 661500),
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
