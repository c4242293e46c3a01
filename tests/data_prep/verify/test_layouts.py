"""Every data set's mixtures are found with what they are the sum of."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.verify.__main__ import main
from data_prep.verify.layouts import LAYOUTS, NAMES, find_rows
from modules.runtime.errors import DataError

IN_NOISE = {"mix_clean": "s1 s2", "mix_both": "s1 s2 noise", "mix_single": "s1 noise"}
SETS = {
    "wsj0mix": (("tr", "cv", "tt"), {"mix": "s1 s2"}),
    "librimix": (("train-100", "dev", "test"), IN_NOISE),
    "wham": (("tr", "cv", "tt"), IN_NOISE),
    "whamr": (
        ("tr", "cv", "tt"),
        {
            f"{mixture}_{room}": parts.replace("s1", f"s1_{room}").replace(
                "s2", f"s2_{room}"
            )
            for mixture, parts in IN_NOISE.items()
            for room in ("anechoic", "reverb")
        },
    ),
}


def make(root: Path, name: str, rate: int = 8000, mode: str = "min") -> Path:
    """A data set of one mixture a split."""
    splits, mixtures = SETS[name]
    rng = np.random.default_rng(0)
    for split in splits:
        place = root / f"wav{rate // 1000}k" / mode / split
        names = sorted({part for parts in mixtures.values() for part in parts.split()})
        waves = {part: 0.1 * rng.standard_normal(400) for part in names}
        waves |= {
            mixture: sum(waves[part] for part in parts.split())
            for mixture, parts in mixtures.items()
        }
        for part, wave in waves.items():
            (place / part).mkdir(parents=True)
            soundfile.write(place / part / "a_b.wav", wave, rate, subtype="FLOAT")
    return root


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_recognised_and_each_mixture_is_the_sum_of_its_parts(
    tmp_path, capsys, name
):
    root = make(tmp_path, name)
    make(tmp_path, name, 16000, "max")
    assert main([str(root)]) == 0
    count = 2 * len(SETS[name][0]) * len(SETS[name][1])
    assert capsys.readouterr().out == f"{root} ({name}): {count} mixtures, 0 faults\n"
    rows = find_rows(root)[1]
    for row in rows:
        mixture, *parts = (Path(path).parent.name for path in row.files)
        assert parts == SETS[name][1][mixture].split()
        assert f"wav{row.sample_rate // 1000}k/" in row.id


@pytest.mark.parametrize("name", ["librimix", "wham", "whamr"])
def test_a_wrong_noise_is_found_and_a_missing_source_named_once(tmp_path, capsys, name):
    root = make(tmp_path, name)
    split = root / "wav8k" / "min" / SETS[name][0][0]
    source = next(split.glob("s1*/a_b.wav"))
    source.unlink()
    assert main([str(root)]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert last.endswith(" 1 faults") and f"{source} is missing" in lines[0]
    make(tmp_path / "two", name)
    noise = tmp_path / "two" / "wav8k" / "min" / SETS[name][0][0] / "noise" / "a_b.wav"
    wrong = 0.1 * np.sin(np.arange(400))
    soundfile.write(noise, wrong, 8000, subtype="FLOAT")
    assert main([str(tmp_path / "two")]) == 1
    *lines, _ = capsys.readouterr().out.splitlines()
    noisy = [mixture for mixture, parts in SETS[name][1].items() if "noise" in parts]
    assert len(lines) == len(noisy)
    assert all("is not the sum of its sources and the noise" in line for line in lines)


def test_parents_named_as_the_originals_are_looked_into(tmp_path):
    make(tmp_path / "Libri2Mix", "librimix")
    name, rows = find_rows(tmp_path)
    assert name == "librimix" and rows[0].id.startswith("Libri2Mix/wav8k/min/train-100")


def test_two_layouts_in_one_folder_need_a_choice(tmp_path):
    make(tmp_path / "x", "wham")
    for split in ("tr", "cv", "tt"):
        folder = tmp_path / "x" / "wav8k" / "min" / split
        (folder / "mix_clean").rename(folder / "mix")
    with pytest.raises(DataError, match="may be wsj0mix or wham; set --layout"):
        find_rows(tmp_path / "x")
    assert find_rows(tmp_path / "x", "wham")[0] == "wham"
    with pytest.raises(DataError, match="no mixtures of the layout librimix found"):
        find_rows(tmp_path / "x", "librimix")


def test_every_layout_is_tested():
    assert set(SETS) == set(LAYOUTS) and {*SETS, "stems"} == set(NAMES)
