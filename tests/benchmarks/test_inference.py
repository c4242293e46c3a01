"""Both sides of the benchmark compute the same; the table says what was measured."""

import runpy
import sys

import numpy as np
import pytest
import soundfile

import separate
from benchmarks.inference import (
    SEPARATE_FILE,
    agreement_db,
    ours,
    write_noise,
    write_sepformer,
)


def test_both_sides_separate_alike(tmp_path, monkeypatch):
    model = write_sepformer(tmp_path / "model", 1)
    mixture = write_noise(tmp_path / "mixture.wav", 0.5, 8000, 1)
    script = tmp_path / "theirs.py"
    script.write_text(SEPARATE_FILE)
    monkeypatch.setattr(sys, "argv", ["", str(model), str(mixture), str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    command = ours(model, mixture, tmp_path / "ours", "fp32")
    assert separate.main(command[2:]) == 0
    for name in ("s1", "s2"):
        path = tmp_path / "ours" / f"{name}_mixture.wav"
        wave_T, rate = soundfile.read(path)
        assert rate == 8000 and np.abs(wave_T).max() > 0
        # SpeechBrain scales every estimate to full scale.
        soundfile.write(path, wave_T / np.abs(wave_T).max(), rate, "FLOAT")
        assert agreement_db(path, tmp_path / f"{name}.wav") > 90


@pytest.mark.parametrize("level, expected", [(0.1, 20), (0.0, np.inf)])
def test_agreement(tmp_path, level, expected):
    wave_T = write_noise(tmp_path / "a.wav", 0.1, 8000, 1)
    wave_T, _ = soundfile.read(wave_T)
    for name, factor in (("b", 1.0), ("c", 1 + level)):
        soundfile.write(tmp_path / f"{name}.wav", wave_T * factor, 8000, "DOUBLE")
    found = agreement_db(tmp_path / "b.wav", tmp_path / "c.wav")
    assert found == pytest.approx(expected, abs=0.1) or found > 200
