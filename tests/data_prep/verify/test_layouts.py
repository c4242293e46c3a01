"""Every data set's mixtures are found with what they are the sum of."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hyperpyyaml import load_hyperpyyaml

import data_prep
from data_prep.verify.__main__ import main
from data_prep.verify.layouts import find_layouts, find_rows
from modules.data.manifest import read_manifest
from modules.runtime.errors import DataError

IN_NOISE = {"mix_clean": "s1 s2", "mix_both": "s1 s2 noise", "mix_single": "s1 noise"}
SETS = {
    "wsj0mix": (("tr", "cv", "tt"), {"mix": "s1 s2"}),
    "talkers": (
        ("train", "valid", "test"),
        {"mix_clean": "s1 s2", "mix_both": "s1 s2 noise"},
    ),
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

UNVERSIONED = {"talkers"}


def make(root: Path, name: str, rate: int = 8000, mode: str = "min") -> Path:
    """A data set of one mixture a split."""
    splits, mixtures = SETS[name]
    rng = np.random.default_rng(0)
    for split in splits:
        place = root / f"wav{rate // 1000}k" / mode / split
        if name in UNVERSIONED:
            place = root / split
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
    if name not in UNVERSIONED:
        make(tmp_path, name, 16000, "max")
    assert main([str(root)]) == 0
    versions = 1 if name in UNVERSIONED else 2
    count = versions * len(SETS[name][0]) * len(SETS[name][1])
    assert capsys.readouterr().out == f"{root} ({name}): {count} mixtures, 0 faults\n"
    for _, row in find_rows(root)[1]:
        mixture, *parts = (Path(path).parent.name for path in row.files)
        assert parts == SETS[name][1][mixture].split()
        if name not in UNVERSIONED:
            assert f"wav{row.sample_rate // 1000}k/" in row.id


@pytest.mark.parametrize("name", ["librimix", "wham", "whamr"])
def test_a_wrong_noise_is_found_and_a_missing_source_named_once(tmp_path, capsys, name):
    root = make(tmp_path, name)
    split = root / "wav8k" / "min" / SETS[name][0][0]
    source = next(split.glob("s1*/a_b.wav"))
    source.unlink()
    assert main([str(root)]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert last.endswith(" 1 faults") and f"{source}: does not exist" in lines[0]
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
    name, placed, notes = find_rows(tmp_path)
    assert name == "librimix" and not notes
    split, row = placed[0]
    assert split == "train" and row.id.startswith("Libri2Mix/wav8k/min/train-100")


def test_two_layouts_in_one_folder_need_a_choice(tmp_path):
    make(tmp_path / "x", "wham")
    for split in ("tr", "cv", "tt"):
        folder = tmp_path / "x" / "wav8k" / "min" / split
        (folder / "mix_clean").rename(folder / "mix")
    with pytest.raises(DataError, match="may be wham or wsj0mix; set --layout"):
        find_rows(tmp_path / "x")
    assert find_rows(tmp_path / "x", "wham")[0] == "wham"
    with pytest.raises(DataError, match="no mixtures of the layout librimix found"):
        find_rows(tmp_path / "x", "librimix")


def test_every_layout_is_tested():
    assert {*SETS, "stems"} == set(find_layouts())


TOY = """
from data_prep.common.folders import write_manifests
from data_prep.common.layout import Layout, find_parts

LAYOUT = (Layout({"a": "train", "b": "valid", "c": "test"}, {"sum": ("voice#",)}),)


def prepare(data_folder, save_folder, num_spks=2, sample_rate=8000, mode="min"):
    splits = find_parts(LAYOUT, data_folder, num_spks, sample_rate, mode)
    return write_manifests(splits, save_folder, sample_rate, "toy")
"""


@pytest.fixture
def toy(tmp_path):
    """The folder of a data set in a layout that no package of `data_prep` has."""
    rng = np.random.default_rng(0)
    root = tmp_path / "toy"
    for split in "abc":
        waves = dict(
            zip(("voice1", "voice2"), rng.normal(0, 0.1, (2, 400)), strict=True)
        )
        waves["sum"] = waves["voice1"] + waves["voice2"]
        for part, wave in waves.items():
            place = root / "wav8k" / "min" / split / part
            place.mkdir(parents=True)
            soundfile.write(place / "x.wav", wave, 8000, subtype="FLOAT")
    return root


def test_a_new_package_is_found_without_registration(
    toy, tmp_path, monkeypatch, capsys
):
    (tmp_path / "more" / "toyset").mkdir(parents=True)
    (tmp_path / "more" / "toyset" / "__init__.py").touch()
    (tmp_path / "more" / "toyset" / "manifests.py").write_text(TOY)
    assert main([str(toy)]) == 1
    assert (
        "no mixtures of the layout librimix or talkers or wham"
        in capsys.readouterr().err
    )
    more = [*data_prep.__path__, str(tmp_path / "more")]
    monkeypatch.setattr(data_prep, "__path__", more)
    for name in ("data_prep.toyset", "data_prep.toyset.manifests"):
        monkeypatch.setitem(sys.modules, name, None)  # forgotten after the test
        del sys.modules[name]
    assert main([str(toy)]) == 0
    assert capsys.readouterr().out == f"{toy} (toyset): 3 mixtures, 0 faults\n"


def test_a_set_outside_of_the_packages_is_prepared_and_verified(
    toy, tmp_path, monkeypatch, capsys
):
    (tmp_path / "my_toy_set.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    yaml = (
        "prepare: !name:my_toy_set.prepare\n"
        f"    data_folder: {toy}\n    save_folder: {tmp_path}/manifests\n"
    )
    manifests = load_hyperpyyaml(yaml)["prepare"]()
    assert [len(read_manifest(path, 2, 8000)) for path in manifests.values()] == [1] * 3
    assert main([str(toy), "--layout=my_toy_set"]) == 0
    assert "(my_toy_set): 3 mixtures, 0 faults" in capsys.readouterr().out
    assert main([str(toy), "--layout=no_such_set"]) == 1
    assert "--layout=no_such_set: expected librimix, " in capsys.readouterr().err


def test_mixtures_without_any_source_are_faulty_rows(tmp_path, capsys):
    root = make(tmp_path, "wsj0mix")
    for split in SETS["wsj0mix"][0]:
        for part in ("s1", "s2"):
            shutil.rmtree(root / "wav8k" / "min" / split / part)
    assert main([str(root)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum("s1/a_b.wav: does not exist" in line for line in lines) == 3
