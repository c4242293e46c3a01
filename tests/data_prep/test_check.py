"""The check reads samples and lists every fault that headers do not show."""

import numpy as np
import pytest
import soundfile

from data_prep.check import main
from data_prep.manifest import Row, write_manifest

RATE = 8000


@pytest.fixture
def manifest(tmp_path):
    """Two mixtures that are exactly the sums of their sources."""
    rng = np.random.default_rng(1)
    rows = []
    for name in ("one", "two"):
        src = 0.2 * rng.standard_normal((2, 900))
        paths = [str(tmp_path / f"{name}_{part}.wav") for part in ("mix", "s1", "s2")]
        for path, wave in zip(paths, [src.sum(0), *src], strict=True):
            soundfile.write(path, wave, RATE, subtype="FLOAT")
        rows.append(Row(name, 900 / RATE, RATE, paths[0], tuple(paths[1:])))
    return write_manifest(tmp_path / "set.csv", rows)


def test_good_data_passes(manifest, capsys):
    assert main([str(manifest)]) == 0
    assert capsys.readouterr().out == f"{manifest}: 2 rows, 0 faults\n"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda wave: np.where(np.arange(900) == 5, np.nan, wave), "holds NaN or Inf"),
        (lambda wave: np.where(np.arange(900) == 5, np.inf, wave), "holds NaN or Inf"),
        (np.zeros_like, "two_s1.wav is silent"),
        (lambda wave: wave * 0.9, "two_mix.wav is not the sum of its sources"),
        (lambda wave: wave[:-1], "has 899 samples"),
    ],
)
def test_each_fault_is_listed(manifest, capsys, spoil, message):
    path = manifest.parent / "two_s1.wav"
    wave, _ = soundfile.read(path)
    soundfile.write(path, spoil(wave), RATE, subtype="FLOAT")
    assert main([str(manifest)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == f"{manifest}: 2 rows, 1 faults"
    assert out[0].startswith(f"{manifest}, two: ") and message in out[0]


def test_rounding_to_16_bit_is_no_fault(manifest):
    for path in manifest.parent.glob("*.wav"):
        wave, _ = soundfile.read(path)
        soundfile.write(path, wave * 0.5, RATE, subtype="PCM_16")
    assert main([str(manifest)]) == 0


def test_bad_manifest_and_no_argument(tmp_path, capsys):
    assert main([str(tmp_path / "none.csv")]) == 1
    assert "no such manifest" in capsys.readouterr().out
    assert main([]) == 2
