"""Who speaks where, which files are left out, and that levels are measured once."""

import logging
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from modules.data import utterances
from modules.data.index import measure_once
from modules.data.manifest import Row
from modules.data.utterances import UtterancePool, check_unchanged
from modules.runtime.errors import AudioError, DataError

RATE = 8000


def write(path, seconds=1.0, level_db=-20.0, rate=RATE, channels=1):
    """A file of noise at an exact RMS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, str(path)))
    wave = np.random.default_rng(seed).standard_normal(
        (round(seconds * rate), channels)
    )
    wave *= 10 ** (level_db / 20) / np.sqrt(np.mean(wave**2))
    subtype = "PCM_16" if path.suffix == ".flac" else "FLOAT"
    soundfile.write(path, wave, rate, subtype=subtype)
    return path


@pytest.fixture
def tree(tmp_path):
    """Three speakers with 1, 2 and 3 utterances, WSJ0 style."""
    for count, speaker in enumerate(("40n", "01x", "a2b"), start=1):
        for take in range(count):
            write(
                tmp_path / "tree" / "si_tr_s" / speaker / f"{speaker}c010{take}.wav",
                seconds=1 + take,
                level_db=-20 - take,
            )
    return tmp_path / "tree"


def counts(pool):
    return dict(zip(pool.speakers, map(len, pool.by_speaker), strict=True))


LIBRI = [f"{s}/{c}/{s}-{c}-000{k}" for s in (19, 26) for c in (7, 8) for k in (0, 1)]
CORPORA = {
    "LibriSpeech": ("librispeech", [f"{name}.flac" for name in LIBRI], {"19", "26"}),
    "its parent": ("librispeech", [f"t/{name}.wav" for name in LIBRI], {"19", "26"}),
    "LibriTTS": (
        "librispeech",
        [f"{s}/{c}/{s}_{c}_00000{c}_000000.wav" for s in (84, 174) for c in (1, 2)],
        {"84", "174"},
    ),
    "MLS": (
        "librispeech",
        [f"audio/{s}/{c}/{s}_{c}_000000.flac" for s in (84, 174) for c in (1, 2)],
        {"84", "174"},
    ),
    "VoxCeleb": (
        "voxceleb",
        [f"{s}/{v}/00001.wav" for s in ("id1", "id2") for v in ("abc", "xyz")],
        {"id1", "id2"},
    ),
    "VCTK": (
        "folder",
        [f"wav48/{s}/{s}_001_mic{k}.flac" for s in ("p225", "s5") for k in (1, 2)],
        {"p225", "s5"},
    ),
    "WSJ0": (
        "wsj0",
        ["si_tr_s/40n/40nc0101.wav", "si_tr_s/01x/01xo031a.wav"],
        {"40n", "01x"},
    ),
    "WSJ0 in capitals": ("wsj0", ["SI_TR_S/40N/40NC0101.WAV"], {"40N"}),
    "WSJ0 in one folder": ("wsj0", ["40nc0101.wav", "01xc0102.wav"], {"40n", "01x"}),
    "a folder a speaker": ("folder", ["ann/one.wav", "x/bob/two.WAV"], {"ann", "bob"}),
    "names of eight": ("folder", ["annie/annie001.wav", "annab/annab001.wav"], None),
    "dates": ("folder", ["ann/2023-01-02.wav", "bob/2023-01-02.wav"], {"ann", "bob"}),
}


@pytest.mark.parametrize("corpus", CORPORA)
def test_who_speaks_is_found_by_looking_and_said(tmp_path, caplog, corpus):
    rule, names, speakers = CORPORA[corpus]
    for name in names:
        write(tmp_path / name)
    with caplog.at_level(logging.INFO):
        pool = UtterancePool.scan(tmp_path)
    speakers = speakers or {"annie", "annab"}
    assert set(pool.speakers) == speakers and len(pool) == len(names)
    assert f"{len(speakers)} speakers by the rule '{rule}', such as" in caplog.text
    assert all(f"{speaker} ({tmp_path}/" in caplog.text for speaker in speakers)


def test_three_speakers_are_examples(tmp_path, caplog):
    for name in "abcd":
        write(tmp_path / name / "one.wav")
    with caplog.at_level(logging.INFO):
        UtterancePool.scan(tmp_path)
    line = next(line for line in caplog.text.splitlines() if "4 speakers" in line)
    assert line.count("one.wav") == 3


@pytest.mark.parametrize(
    ("stray", "names"),
    [
        ("notes/hello.wav", [f"{name}.wav" for name in LIBRI]),
        ("19/7/hello.wav", [f"{name}.wav" for name in LIBRI]),
        ("id1/hello.wav", CORPORA["VoxCeleb"][1]),
        ("hello.wav", ["ann/one.wav", "bob/two.wav"]),
        # Of another corpus: its folders are no speakers.
        ("19/7/19-7-0000.wav", ["ann/one.wav", "bob/two.wav"]),
    ],
)
def test_a_file_that_fits_no_rule_is_left_out_and_changes_none(
    tmp_path, caplog, stray, names
):
    for name in names:
        write(tmp_path / name)
    before = UtterancePool.scan(tmp_path)
    write(tmp_path / stray)
    pool = UtterancePool.scan(tmp_path)
    assert pool.by_speaker == before.by_speaker
    assert f"left out 1 of {len(names) + 1} files" in caplog.text
    assert f"{tmp_path}/{stray} (names no speaker by the rule" in caplog.text


@pytest.mark.parametrize(
    ("pattern", "speakers"),
    [
        ("folder", {"x": 2, "y": 1}),
        (r"/(\w{3})[^/]*$", {"01x": 1, "40n": 2}),
        (r"[xy]/\d+", {"x_40": 1, "x_01": 1, "y_40": 1}),  # a name, and no path
        (r"x/(?:(0\d)|(4\d))", {"01": 1, "40": 1}),
    ],
)
def test_the_pattern_can_be_given(tmp_path, pattern, speakers):
    for name in ("x/40na.wav", "x/01xa.wav", "y/40nb.wav"):
        write(tmp_path / name)
    pool = UtterancePool.scan(tmp_path, speaker_pattern=pattern)
    assert counts(pool) == speakers


def test_a_pattern_that_will_not_do(tmp_path):
    write(tmp_path / "x" / "40na.wav")
    with pytest.raises(DataError, match=r"pattern: '\(' is neither librispeech"):
        UtterancePool.scan(tmp_path, speaker_pattern="(")
    with pytest.raises(DataError, match=r"the first is .*40na.wav \(names no speaker"):
        UtterancePool.scan(tmp_path, speaker_pattern="voxceleb")


def test_lengths_levels_and_rates_are_those_of_the_files(tree):
    write(tree / "si_tr_s" / "40n" / "40nc0109.wav", 2, -33, rate=16000)
    pool = UtterancePool.scan(tree)
    assert counts(pool) == {"01x": 2, "40n": 2, "a2b": 3}
    for speaker, talks in zip(pool.speakers, pool.by_speaker, strict=True):
        assert {talk.speaker for talk in talks} == {speaker}
        for talk in talks:
            wave, rate = soundfile.read(talk.path)
            assert (talk.frames, talk.sample_rate) == (len(wave), rate)
            rms_db = 10 * np.log10(np.mean(wave**2))
            assert abs(talk.level_db - rms_db) < 0.05
    assert str(pool) == "7 utterances of 3 speakers (0.0 h)"


CONTAINERS = ("AIFF", "AU", "CAF", "MP3", "NIST", "OGG", "RF64", "W64", "WAVEX")


def spoil(folder):
    """One file of each kind that cannot be used; returns the reasons by name."""
    write(folder / "short.wav", 0.4)
    write(folder / "stereo.wav", channels=2)
    write(folder / "faint.wav", level_db=-90)
    write(folder / "huge.wav", level_db=400)
    soundfile.write(folder / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(folder / "none.wav", np.zeros(0), RATE)
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        wave, _ = soundfile.read(write(folder / f"{name}.wav"))
        wave[77] = value
        soundfile.write(folder / f"{name}.wav", wave, RATE, subtype="FLOAT")
    (folder / "html.wav").write_text("<html>")
    wave, _ = soundfile.read(write(folder / "loud.wav"))
    wave[77] = 200.0
    soundfile.write(folder / "loud.wav", wave, RATE, subtype="FLOAT")
    soundfile.write(folder / "constant.wav", np.full(RATE, 0.3), RATE)
    for name in ("cut.wav", "cut.flac"):
        cut = write(folder / name, 4.0)
        os.truncate(cut, cut.stat().st_size // 2)
    wave = np.random.default_rng(0).normal(0, 0.1, 4 * RATE)
    for kind in CONTAINERS:
        path = folder / f"{kind}.wav"
        soundfile.write(path, wave, RATE, format=kind)
        os.truncate(path, path.stat().st_size - 1000)
    (folder / "nowhere.wav").symlink_to("nothing.wav")
    return {
        "short": "0.40 s, shorter than 0.5 s",
        "stereo": "2 channels, not mono",
        "faint": "silent",
        "huge": "times full scale",
        "loud": "has a peak of 2e+02 times full scale",
        "constant": "silent: a constant (0.3",
        "cut": "truncated: holds ",
        "cut.flac": "is truncated: holds ",
        **dict.fromkeys(CONTAINERS, "is truncated: "),
        "nowhere": "is a link to nothing.wav, which does not exist",
        "silent": "silent",
        "none": "empty",
        "nan": "holds NaN or Inf",
        "inf": "holds NaN or Inf",
        "html": "cannot be read as audio (Format not recognised.",
    }


def test_unusable_files_are_left_out_counted_and_named(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(utterances, "NAMED", 40)
    good = write(tmp_path / "bob" / "good.wav")
    faults = spoil(tmp_path / "bob")
    pool = UtterancePool.scan(tmp_path, tmp_path / "index.csv")
    assert [talk.path for talks in pool.by_speaker for talk in talks] == [str(good)]
    assert f"left out {len(faults)} of {len(faults) + 1} files" in caplog.text
    for name, fault in faults.items():
        line = re.split(rf"/{name}(?:\.wav)? \(", caplog.text, maxsplit=1)[1]
        assert fault in line.split(")")[0]
    first = caplog.text
    caplog.clear()
    UtterancePool.scan(tmp_path, tmp_path / "index.csv")  # from the index
    assert caplog.text == first


def test_a_file_may_be_touched_but_not_changed_while_it_is_used(tmp_path):
    path = write(tmp_path / "bob" / "one.wav")
    (talk,) = UtterancePool.scan(tmp_path).by_speaker[0]
    check_unchanged(talk)
    os.utime(path, ns=(1, 1))
    check_unchanged(talk)
    for change, reason in (
        (lambda: write(path, 1.0, level_db=-30), "other samples"),
        (lambda: write(path, 2.0), "other samples"),
        (lambda: soundfile.write(path, np.zeros(RATE), RATE), "silent"),
        (lambda: path.write_text("<html>"), "cannot be read as audio"),
    ):
        change()
        with pytest.raises(AudioError, match=f"one.wav: has changed .*{reason}") as e:
            check_unchanged(talk)
        assert "\n" not in str(e.value)
    path.unlink()
    with pytest.raises(AudioError, match="one.wav: does not exist"):
        check_unchanged(talk)


def test_what_a_pipe_has_written_is_whole(tmp_path):
    path = tmp_path / "bob" / "piped.wav"
    path.parent.mkdir()
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(RATE), RATE)
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = b"\xff\xff\xff\xff"  # ffmpeg's, of unknown length
    path.write_bytes(data)
    ((talk,),) = UtterancePool.scan(tmp_path).by_speaker
    assert talk.frames == RATE


def test_links_are_followed_but_not_in_circles(tree, tmp_path):
    place = tmp_path / "linked"
    place.mkdir()
    (place / "talkers").symlink_to(tree / "si_tr_s")
    (tree / "si_tr_s" / "40n" / "up").symlink_to("..")
    (place / "again").symlink_to(tree / "si_tr_s" / "a2b")
    assert sorted(counts(UtterancePool.scan(place)).values()) == [1, 2, 3]


def test_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        UtterancePool.scan(tmp_path / "none")
    with pytest.raises(DataError, match="holds no .wav or .flac"):
        UtterancePool.scan(tmp_path)
    write(tmp_path / "bob" / "short.wav", 0.1)
    with pytest.raises(DataError, match=r"no file can be used.*short.wav \(0.10 s"):
        UtterancePool.scan(tmp_path)


def test_levels_are_measured_once(tree, tmp_path, monkeypatch):
    index = tmp_path / "folder" / "index.csv"
    first = UtterancePool.scan(tree, index)
    measured = []
    measure = utterances._measure_file

    def spy(path):
        measured.append(path)
        return measure(path)

    monkeypatch.setattr(utterances, "_measure_file", spy)
    again = UtterancePool.scan(tree, index)
    assert measured == [] and again.by_speaker == first.by_speaker

    changed = write(tree / "si_tr_s" / "40n" / "40nc0100.wav", 3.0)
    added = write(tree / "si_tr_s" / "40n" / "40nc0105.wav")
    pool = UtterancePool.scan(tree, index)
    assert sorted(measured) == [str(changed), str(added)]
    assert counts(pool)["40n"] == 2

    added.unlink()
    UtterancePool.scan(tree, index)
    assert str(added) not in index.read_text()


@pytest.mark.parametrize("damage", ["", "path,size\n", "nonsense", None])
def test_damaged_index_is_measured_anew(tree, tmp_path, caplog, damage):
    index = tmp_path / "index.csv"
    pool = UtterancePool.scan(tree, index)
    whole = index.read_text()
    index.write_text(whole[: len(whole) // 2] if damage is None else damage)
    assert UtterancePool.scan(tree, index).by_speaker == pool.by_speaker
    assert "index.csv: measuring anew" in caplog.text
    assert index.read_text() == whole


def test_an_index_of_many_files_costs_little_memory(tmp_path):
    columns = {"path": str, "fingerprint": str, "frames": int}
    for measured in (lambda path: (len(path),), None):  # the second time it reads
        marks = {f"{name}.wav": "1" for name in "ba"}
        found = measure_once(tmp_path / "index.csv", columns, marks, measured)
        assert [*found.items()] == [("b.wav", (5,)), ("a.wav", (5,))]
        pairs = zip(found, marks, strict=True)
        assert all(key is given for key, given in pairs)  # no second string
    script = "import sys, modules.data.utterances; print('scipy.signal' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert done.stdout == "False\n"  # 50 MB


def test_evaluation_speakers_among_training_ones_are_reported(tree, caplog):
    UtterancePool.scan(tree)
    assert "evaluation" not in caplog.text
    write(tree / "si_et_05" / "22g" / "22gc0101.wav")
    UtterancePool.scan(tree)
    assert "trains on the evaluation speakers of si_et_05 as well" in caplog.text


def test_sources_of_a_manifest_are_utterances(tmp_path):
    def row(name, seconds, count=2):
        paths = [
            write(tmp_path / f"s{k}" / f"{name}.wav", seconds) for k in range(count)
        ]
        return Row(name, seconds, RATE, "/mix.wav", tuple(map(str, paths)))

    rows = [
        row("40na0101_1.2_01xa0101_-1.2", 1.0),
        row("40na0101_0.1_a2ba0101_-0.1", 2.0),  # a longer cut of the same utterance
    ]
    pool = UtterancePool.from_manifest(rows, tmp_path / "index.csv")
    assert counts(pool) == {"01x": 1, "40n": 1, "a2b": 1}
    (longest,) = pool.by_speaker[1]
    assert (longest.name, longest.frames) == ("40na0101", 2 * RATE)

    libri = UtterancePool.from_manifest(
        [row("19-198-0001_26-495-0000_19-7-0002", 1, 3)]
    )
    assert counts(libri) == {"19": 2, "26": 1}
    for name in ("19-198-0001_26-495-0000", "19ka0101_0.1_26xa0101_-0.1"):
        single = replace(row(name, 1, 1), noise="/noise.wav")
        (speaker,) = UtterancePool.from_manifest([single]).speakers
        assert speaker in ("19", "19k")
        with pytest.raises(DataError, match="does not tell who speaks"):
            UtterancePool.from_manifest([row(name, 1, 1)])
    for name in ("song", "40na0101_x_01xa0101_y", "a_1_b_2_c_3"):
        with pytest.raises(DataError, match="does not tell who speaks.*base_folder_dm"):
            UtterancePool.from_manifest([row(name, 1)])
