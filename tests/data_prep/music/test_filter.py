"""The stem filter: a separator that hears frequencies finds the wrong labels."""

import csv
import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from data_prep.music import filter as clean_stems
from data_prep.music.filter import Margins, judge, loudness_db, split_margins
from modules.runtime.errors import DataError
from modules.weights.checkpointer import AtomicCheckpointer
from modules.weights.export import export
from tests.modules.weights.test_pretrained import DEMUCS, make_htdemucs

RATE = 8000


class ByFrequency(nn.Module):
    """An ideal separator of a low and a high source, cut at 1 kHz."""

    sources, sample_rate, segment = ["low", "high"], RATE, 1

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, mixture_BCT):
        spectrum = torch.fft.rfft(mixture_BCT)
        is_low = torch.fft.rfftfreq(mixture_BCT.shape[-1], 1 / RATE) < 1000
        parts = [spectrum * is_low, spectrum * ~is_low]
        waves = [torch.fft.irfft(p, mixture_BCT.shape[-1]) for p in parts]
        return torch.stack(waves, dim=1)


def tone(frequency: float, seconds: float = 2.0) -> np.ndarray:
    time_T = np.arange(round(seconds * RATE)) / RATE
    return np.tile(0.3 * np.sin(2 * np.pi * frequency * time_T)[:, None], (1, 2))


@pytest.fixture
def data_folder(tmp_path):
    """Three tracks; in the second the labels are exchanged, the third has silence."""
    for track, (low, high) in {
        "a": (300, 2000),
        "b": (2000, 300),
        "c": (400, None),
    }.items():
        for name, frequency in (("low", low), ("high", high)):
            wave = tone(frequency) if frequency else 0 * tone(1)
            (tmp_path / "data" / track).mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / "data" / track / f"{name}.wav", wave, RATE)
    return tmp_path / "data"


def rows_of(folder) -> dict:
    with open(folder / "margins.csv", newline="") as file:
        return {(row["track"], row["stem"]): row for row in csv.DictReader(file)}


def test_loudness_is_that_of_the_sum_of_absolute_samples():
    wave_SCT = torch.tensor([[[0.5, -0.5]], [[5.0, 5.0]], [[0.0, 0.0]]])
    assert loudness_db(wave_SCT).tolist() == pytest.approx([0, 20, -200])


def test_the_margin_is_large_for_the_right_name_and_negative_for_the_other():
    low_CT = torch.from_numpy(tone(300).T).float().contiguous()
    right, loudness = judge(ByFrequency(), low_CT, "low")
    wrong, _ = judge(ByFrequency(), low_CT, "high")
    assert right > 20 and wrong == pytest.approx(-right)
    assert set(loudness) == {"low", "high"}


def test_the_pitch_is_moved_before_the_separation():
    # 800 Hz lies below the cut, 6 semitones higher at 1131 Hz it lies above.
    edge_CT = torch.from_numpy(tone(800).T).float().contiguous()
    assert judge(ByFrequency(), edge_CT, "low", semitones=0)[0] > 0
    assert judge(ByFrequency(), edge_CT, "low", semitones=6)[0] < 0


def test_the_right_stems_are_listed_and_the_silent_is_not_judged(data_folder, tmp_path):
    out = tmp_path / "out"
    clean = clean_stems.clean_stems(data_folder, ByFrequency(), out)
    assert clean == {"low": ["a", "c"], "high": ["a"]}
    assert json.loads((out / "clean.json").read_text()) == clean
    status = {key: row["status"] for key, row in rows_of(out).items()}
    assert status == {
        ("a", "low"): "clean",
        ("a", "high"): "clean",
        ("b", "low"): "mixed",
        ("b", "high"): "mixed",
        ("c", "low"): "clean",
        ("c", "high"): "silent",
    }
    assert (out / "margins.png").stat().st_size > 1000


def test_a_single_track_is_judged(data_folder, tmp_path):
    for track in "bc":
        shutil.rmtree(data_folder / track)
    clean_stems.clean_stems(data_folder, ByFrequency(), tmp_path / "out")
    assert rows_of(tmp_path / "out").keys() == {("a", "low"), ("a", "high")}


def test_an_interrupted_run_continues(data_folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    judged = []

    def stop_after_two(model, stem_CT, name, *settings):
        if len(judged) == 2:
            raise KeyboardInterrupt
        judged.append(name)
        return judge(model, stem_CT, name, *settings)

    monkeypatch.setattr(clean_stems, "judge", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        clean_stems.clean_stems(data_folder, ByFrequency(), out)
    assert len(rows_of(out)) == 2
    monkeypatch.setattr(clean_stems, "judge", judge)
    clean_stems.clean_stems(data_folder, ByFrequency(), out)
    whole = tmp_path / "whole"
    clean_stems.clean_stems(data_folder, ByFrequency(), whole)
    assert rows_of(out) == rows_of(whole)


@pytest.fixture
def command(data_folder, tmp_path, monkeypatch) -> list[str]:
    """Arguments of the program, which finds an ideal separator."""
    monkeypatch.setattr(clean_stems, "load_model", lambda *_: ByFrequency())
    out = tmp_path / "out"
    return [f"--data_folder={data_folder}", "--checkpoint=x", f"--out={out}"]


def test_ctrl_c_is_one_line_that_says_how_to_go_on(command, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(clean_stems, "judge", interrupt)
        assert clean_stems.main(command) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "stopped; the same command continues"
    )
    assert clean_stems.main(command) == 0
    text = capsys.readouterr().out
    assert "low        2 clean" in text and "clean above: low " in text


def test_a_stem_that_a_track_lacks_is_silent_if_asked(command, data_folder, capsys):
    (data_folder / "c" / "high.wav").unlink()
    assert clean_stems.main(command) == 1
    assert "c/high.wav: does not exist" in capsys.readouterr().err
    assert clean_stems.main([*command, "--missing_stems=silent"]) == 0
    assert rows_of(data_folder.parent / "out")["c", "high"]["status"] == "silent"


def test_where_nothing_is_clean_the_largest_margin_is_shown(command, tmp_path, capsys):
    clean_stems.main([*command, "--threshold=200"])
    text = capsys.readouterr().out
    best = max(
        (float(row["margin_db"]), stem, track)
        for (track, stem), row in rows_of(tmp_path / "out").items()
        if row["status"] != "silent"
    )
    assert "high       0 clean" in text and "no stem reaches 200 dB" in text
    assert f"{best[0]:.1f} dB ({best[1]} of {best[2]})" in text
    clean_stems.main(command)  # judges nothing anew
    assert "no stem reaches" not in capsys.readouterr().out


CLEAN = [4.1, 5.0, 6.2, 7.7, 8.1, 9.0, 10.4, 12.9]


@pytest.mark.parametrize(
    ("wrong", "right", "is_cut"),
    [
        ([-17.0], CLEAN, True),  # one of nine
        ([], [*CLEAN, 14.0], False),  # none of nine
        ([], CLEAN[:2], False),
        ([], [*CLEAN, 60.0], False),  # an easy one makes no other wrong
        ([-9.0, -8.0, -7.5, -6.0], CLEAN[2:], True),
        ([], [21.0, 24.0, 25.0, 60.0, 70.0], False),  # all clean by CCOM's rule
        ([], [-30.0, -29.0, -28.0, -31.0, 20.0], False),  # would leave too few
        ([-80.0], [80.0], True),
        ([], [], False),
    ],
)
def test_margins_of_a_stem_are_split_between_wrong_and_right(wrong, right, is_cut):
    threshold = split_margins([*right, *wrong])
    assert np.isfinite(threshold) == is_cut
    assert all(margin <= threshold for margin in wrong)
    assert all(margin > threshold for margin in right)


def test_clean_margins_of_any_width_are_rarely_split():
    rng = np.random.default_rng(0)
    for width in (1, 3, 6):
        drawn = rng.normal(8, width, (200, 9))
        assert sum(np.isfinite(split_margins(row.tolist())) for row in drawn) <= 10


@pytest.mark.parametrize("margins", [[], [3.2], [-90.0, 80.0], [19.99, 20.0, 20.01]])
def test_bins_cover_all_margins_and_meet_at_the_threshold(margins):
    edges = clean_stems.bin_edges(margins, 20.0)
    assert 20.0 in edges and 2 <= len(edges) <= 33
    assert all(edges[0] <= margin < edges[-1] for margin in margins)
    assert len({round(b - a, 6) for a, b in zip(edges, edges[1:], strict=False)}) == 1


def test_margins_of_other_settings_are_not_mixed(tmp_path):
    Margins(tmp_path, ["low"], {"tempo": 2.0})
    Margins(tmp_path, ["low"], {"tempo": 2.0})
    with pytest.raises(DataError, match="begun with tempo=2.0, now it is 1.0"):
        Margins(tmp_path, ["low"], {"tempo": 1.0})


def test_a_file_in_the_place_of_the_results_is_one_line(command, tmp_path, capsys):
    (tmp_path / "out").touch()
    assert clean_stems.main(command) == 1
    assert f"error: {tmp_path}/out: Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--tempo=2", "holds no known layout of weights (it has: nothing)"),
        ("--checkpoint=none.th", "none.th does not exist"),
        ("--device=abacus", "--device=abacus: no such device"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, capsys, option, message):
    arguments = ["--data_folder=none", f"--checkpoint={tmp_path}", "--out=none"]
    assert clean_stems.main([*arguments, option]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert len(error.splitlines()) == 1


def test_a_run_a_checkpoint_an_export_and_a_package_of_demucs_judge_alike(tmp_path):
    trained, run = make_htdemucs(0), tmp_path / "run"
    renamed = {"segment": "segment_seconds", "samplerate": "sample_rate"}
    size = {renamed.get(key, key): value for key, value in DEMUCS.items()}
    size |= {"sources": trained.sources, "segment_seconds": 1.2}
    run.mkdir()
    (run / "hyperparams.yaml").write_text(
        f"sample_rate: {trained.sample_rate}\n"
        f"separator: !new:modules.models.htdemucs.HTDemucs {json.dumps(size)}\n"
    )
    checkpoints = AtomicCheckpointer(run / "save", {"separator": trained})
    saved = checkpoints.save_checkpoint().path
    exported = export(run, tmp_path / "exported", demucs=True)
    (package,) = exported.glob("*.th")
    wave_CT = torch.randn(2, 1500, generator=torch.Generator().manual_seed(0))
    margins = [
        judge(clean_stems.load_model(place), wave_CT, "vocals")
        for place in (run, saved, exported, package)
    ]
    assert margins == [judge(trained.eval(), wave_CT, "vocals")] * 4
