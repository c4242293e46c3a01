"""From a folder of single people to training: disjoint sets, mixed as in training."""

import csv
import shutil

import numpy as np
import pytest
import soundfile
import torch

import train
from data_prep.synthetic.voices import make_voices, speak
from data_prep.talkers import generate as talkers
from data_prep.talkers.__main__ import main
from data_prep.talkers.generate import generate
from data_prep.talkers.manifests import prepare
from data_prep.verify.__main__ import main as verify
from modules.data.dynamic_mixing import DynamicMixing
from modules.data.manifest import read_manifest
from modules.data.utterances import Utterance, UtterancePool
from modules.runtime.errors import AudioError, DataError

NAMES = ("annie", "annab", "carl", "dora", "eve", "finn", "gus")
SMALL = {"train_mixtures": 5, "valid_mixtures": 3, "test_mixtures": 4, "seconds": 0.6}
SETS = {"train": 5, "valid": 3, "test": 4}


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Seven people in WAV and FLAC at three rates, two recordings each."""
    root = tmp_path_factory.mktemp("people")
    for k, (name, voice) in enumerate(zip(NAMES, make_voices(7), strict=True)):
        rate, suffix = (8000, 16000, 22050)[k % 3], ("wav", "flac")[k % 2]
        folder = root / ("studio" if k % 2 else "") / name
        folder.mkdir(parents=True)
        for take in range(2):
            wave_T = speak(voice, 1.2, rate, np.random.default_rng([k, take]))
            soundfile.write(folder / f"{name[:5]}00{take}.{suffix}", wave_T, rate)
    return root


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Four noises, mono and stereo, at two rates."""
    root = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for k in range(4):
        rate = (8000, 16000)[k % 2]
        wave_TC = 0.1 * rng.standard_normal((2 * rate, 1 + k // 2))
        soundfile.write(root / f"{k}.wav", wave_TC, rate)
    return root


@pytest.fixture(scope="module")
def made(people, tmp_path_factory):
    return generate(people, tmp_path_factory.mktemp("made") / "set", **SMALL, workers=1)


@pytest.fixture(scope="module")
def noisy(people, noise, tmp_path_factory):
    out = tmp_path_factory.mktemp("noisy") / "set"
    return generate(people, out, noise, **SMALL, workers=1)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(talkers, "BLOCK", 2)


def contents(root):
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {path.relative_to(root): path.read_bytes() for path in files}


def speakers_of(out):
    """The people of each set by the table, and by the lists of the mixtures."""
    with open(out / "speakers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    table = {
        split: {r["speaker"] for r in rows if r["split"] == split} for split in SETS
    }
    heard = {}
    for split in SETS:
        heard[split] = set()
        for path in (out / split / "utterances").iterdir():
            with open(path, newline="") as file:
                pairs = [row["utterances"].split("+") for row in csv.DictReader(file)]
            names = [[part.split("/")[0] for part in pair] for pair in pairs]
            assert all(len(set(pair)) == len(pair) for pair in names)
            heard[split] |= {name for pair in names for name in pair}
    return table, heard


def test_people_of_the_sets_are_disjoint(made, capsys):
    table, heard = speakers_of(made)
    assert sorted(name for names in table.values() for name in names) == sorted(NAMES)
    assert [len(table[split]) for split in SETS] == [3, 2, 2]
    assert all(heard[split] <= table[split] for split in SETS)
    links = list((made / "train_speakers").glob("*/*"))
    assert {link.parent.name for link in links} == table["train"]
    assert len(links) == 6 and all(link.resolve().is_file() for link in links)


@pytest.mark.parametrize("in_noise", [False, True])
def test_mixtures_are_exact_sums_that_every_reader_takes(
    made, noisy, tmp_path, capsys, in_noise
):
    out = noisy if in_noise else made
    manifests = prepare(out, tmp_path)
    for split, count in SETS.items():
        rows = read_manifest(manifests[split], 2, 8000)
        assert len(rows) == count
        for row in rows:
            assert bool(row.noise) == in_noise and row.duration == 0.6
            mix_T, *parts = (
                soundfile.read(path, dtype="int16")[0].astype(int)
                for path in (row.mixture, *row.summands)
            )
            assert (mix_T == sum(parts)).all()
            assert abs(max(np.abs(w).max() for w in (mix_T, *parts)) - 29491) <= 2
    assert verify([str(out)]) == 0
    if in_noise:
        used = {path.parent.name for path in (out / "noises").glob("*/*.wav")}
        assert used == set(SETS)
        assert len(list((out / "noises").glob("*/*.wav"))) == 4


def test_mixtures_are_those_of_dynamic_mixing(made, monkeypatch, people, tmp_path):
    """Nothing is mixed by rules of its own: levels, cuts and sums are training's."""
    seen = {}

    class Spy(DynamicMixing):
        def __getitem__(self, k):
            seen[len(self), k] = super().__getitem__(k)
            return seen[len(self), k]

    monkeypatch.setattr(talkers, "DynamicMixing", Spy)
    out = generate(people, tmp_path / "again", **SMALL, workers=1)
    for (count, k), example in seen.items():
        split = {count: split for split, count in SETS.items()}[count]
        for number, source_T in enumerate(example.src, start=1):
            path = out / split / f"s{number}" / f"{k:05d}.wav"
            written_T = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
            assert (written_T - source_T).abs().max() <= 0.5 / 2**15
    assert len(seen) == sum(SETS.values())
    assert contents(out) == contents(made)


def test_a_test_set_may_be_copied_alone(noisy, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(noisy / "test", copy / "test")
    for folder, other in ((copy, None), (tmp_path / "none", copy)):
        manifests = prepare(folder, tmp_path, test_folder=other, splits=["test"])
        assert list(manifests) == ["test"]
        assert len(read_manifest(manifests["test"], 2, 8000)) == SETS["test"]
    shutil.copy(noisy / "generated.json", copy)  # begun here, and not finished
    with pytest.raises(DataError, match="is not finished"):
        prepare(copy, tmp_path, splits=["test"])


def test_workers_do_not_change_the_waves(people, made, tmp_path, small_blocks):
    out = generate(people, tmp_path / "two", **SMALL, workers=2)
    waves = {k: data for k, data in contents(made).items() if k.suffix == ".wav"}
    assert waves.items() <= contents(out).items()
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def test_restart_and_other_settings(people, noise, noisy, tmp_path, monkeypatch):
    out, settings = tmp_path / "out", {**SMALL, "workers": 1}
    calls = []

    def stop(path, *rest):
        calls.append(path)
        if len(calls) == 20:
            raise KeyboardInterrupt
        write(path, *rest)

    write = talkers.write_wave
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(talkers, "write_wave", stop)
        generate(people, out, noise, **settings)
    with pytest.raises(DataError, match="is not finished; the same command continues"):
        prepare(out, tmp_path / "manifests")
    generate(people, out, noise, **settings)
    assert contents(out) == contents(noisy)
    other = generate(people, tmp_path / "other", noise, **settings, seed=1)
    assert speakers_of(other)[0] != speakers_of(out)[0]
    with pytest.raises(DataError, match="begun with seed=0, now it is 1"):
        generate(people, out, noise, **SMALL, seed=1)
    with pytest.raises(DataError, match="begun with recordings="):
        generate(people, out, **SMALL)


def test_three_people_at_another_rate(people, tmp_path):
    more = {**SMALL, "num_spks": 3, "sample_rate": 16000}
    with pytest.raises(DataError, match=f"{people}: speakers: only 7, but .* need 3"):
        generate(people, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()
    for copy, name in (("hal", "eve"), ("ida", "gus")):
        (tmp_path / "people" / copy).mkdir(parents=True)
        for path in people.rglob(f"{name}/*"):
            target = tmp_path / "people" / copy / path.name
            target.write_bytes(path.read_bytes())
    (tmp_path / "people/rest").symlink_to(people)
    out = generate(tmp_path / "people", tmp_path / "out", **more, workers=1)
    manifests = prepare(out, tmp_path / "manifests", 3, 16000)
    assert len(read_manifest(manifests["test"], 3, 16000)) == 4
    with pytest.raises(DataError, match="set --num_spks=3"):
        prepare(out, tmp_path / "manifests", 2, 16000)


def test_what_cannot_be_used_is_named(people, noise, tmp_path, caplog):
    (tmp_path / "people").mkdir()
    (tmp_path / "people/rest").symlink_to(people)
    (tmp_path / "people/hal").mkdir()
    (tmp_path / "people/hal/cut.wav").write_bytes(b"RIFF")
    generate(tmp_path / "people", tmp_path / "out", **SMALL, workers=1)
    assert "left out 1 of 15 files" in caplog.text and "hal/cut.wav" in caplog.text
    with pytest.raises(DataError, match="none: no such folder"):
        generate(tmp_path / "none", tmp_path / "x")
    with pytest.raises(DataError, match="files of noise: only 1, but training"):
        generate(people, tmp_path / "x", tmp_path / "people/hal")
    with pytest.raises(DataError, match="must be above 0"):
        generate(people, tmp_path / "x", test_mixtures=0)
    with pytest.raises(DataError, match="mixtures are of mode 'min'"):
        prepare(tmp_path / "out", tmp_path, mode="max")
    (tmp_path / "noise").mkdir()
    for k in range(3):
        (tmp_path / f"noise/{k}.wav").write_bytes(b"RIFF")
    with pytest.raises(AudioError, match=r"noise/\d.wav"):
        generate(people, tmp_path / "y", tmp_path / "noise", **SMALL, workers=1)


def test_no_speaker_is_compared_with_all_others():
    class Name(str):
        compared = 0
        __hash__ = str.__hash__

        def __eq__(self, other):
            Name.compared += 1
            return str.__eq__(self, other)

    names = [Name(k) for k in range(300)]
    pool = UtterancePool([Utterance("", "u", str(k), 8000, 1, 0.0) for k in range(300)])
    assert len(talkers._named(pool, names[:150])) == 150
    assert Name.compared < 1000


def test_from_a_folder_to_training_with_two_commands(
    people, noise, tmp_path, toy_arguments, capsys
):
    out = tmp_path / "mixtures"
    options = [f"--{name}={value}" for name, value in SMALL.items()]
    command = [f"--speakers={people}", f"--out={out}", f"--noise={noise}", *options]
    assert main([*command, "--workers=1"]) == 0
    said = capsys.readouterr().out
    assert "train: 6 utterances of 3 speakers (0.0 h), 2 files of noise" in said
    assert "test: 4 utterances of 2 speakers (0.0 h), 1 files of noise" in said
    train.main(toy_arguments(dataset="talkers", data_folder=out))
    log = (tmp_path / "run/log.txt").read_text()
    assert "Dynamic mixing from 6 utterances of 3 speakers" in log
    rows = (tmp_path / "run/test_results.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:5]] == [f"{k:05d}" for k in range(4)]
