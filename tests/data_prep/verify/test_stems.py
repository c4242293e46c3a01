"""The table of requirements: one line each, and every kind of fault is counted."""

import re

import numpy as np
import pytest
import soundfile

from data_prep.verify.__main__ import main

RATE = 8000
LAX = ["--layout=stems", "--min_seconds=0.5", f"--rates={RATE}", "--min_train=2"]


@pytest.fixture
def folder(tmp_path):
    """Two tracks to train on and two to validate on, without a fault."""
    rng = np.random.default_rng(2)
    for split in ("train", "valid"):
        for name in ("a", "b"):
            track = tmp_path / "set" / split / name
            track.mkdir(parents=True)
            src = rng.integers(-5000, 5000, (3, RATE, 2)).astype(np.int16)
            stems = dict(zip(("mixture", "kick", "bass"), src, strict=True))
            stems["mixture"] = stems["kick"] + stems["bass"]
            for stem, wave in stems.items():
                soundfile.write(track / f"{stem}.wav", wave, RATE)
    return tmp_path / "set"


def table(out: str) -> dict[str, str]:
    """The last column by the first."""
    cells = [re.split(r"  +", line) for line in out.splitlines()]
    start = next(k for k, line in enumerate(cells) if line[0] == "requirement")
    return {line[0]: line[-1] for line in cells[start + 1 : -1]}


def test_a_good_set_meets_every_requirement(folder, capsys):
    assert main([*LAX, str(folder)]) == 0
    out = capsys.readouterr().out
    found = table(out)
    assert len(found) == 13 and set(found.values()) == {"none"}
    assert "bass, kick" in out and "4 at 8000 Hz" in out and "4 at 16 bits" in out
    assert out.endswith(f"{folder} (stems): 4 tracks, 0 faults\n")


def test_the_layout_is_found_by_looking(folder, capsys):
    assert main([*LAX[1:], str(folder)]) == 0
    assert "(stems)" in capsys.readouterr().out


def rewrite(change, rate=RATE, subtype="PCM_16"):
    """A function that replaces samples, rate or depth of a file."""
    return lambda path: soundfile.write(
        path, change(soundfile.read(path)[0]), rate, subtype=subtype
    )


@pytest.mark.parametrize(
    ("spoil", "requirement", "message"),
    [
        (lambda path: path.unlink(), "whole files", "bass.wav: does not exist"),
        (rewrite(lambda w: w[:, 0]), "aligned stems", "bass.wav is mono"),
        (rewrite(lambda w: w[:, [0, 0, 0]]), "aligned stems", "has 3 channels"),
        (rewrite(lambda w: np.roll(w, 1, 0)), "mixture is the sum", "is not the sum"),
        (rewrite(lambda w: np.clip(50 * w, -1, 1)), "clipping", "bass.wav is clipped"),
        (rewrite(np.zeros_like), "silence", "bass.wav is silent"),
        (
            rewrite(lambda w: w, 2 * RATE),
            "sample rate",
            "16000 Hz, expected 8000 Hz",
        ),
        (rewrite(lambda w: w, subtype="PCM_U8"), "bit depth", "has 8 bits, wanted 16"),
    ],
)
def test_each_fault_counts_in_its_line(folder, capsys, spoil, requirement, message):
    spoil(folder / "train" / "b" / "bass.wav")
    assert main([*LAX, str(folder)]) == 1
    out = capsys.readouterr().out
    assert table(out)[requirement] == "1"
    lines = [line for line in out.splitlines() if line.startswith("train/b: ")]
    assert any(message in line and f"{folder}/train/b" in line for line in lines)


@pytest.mark.parametrize(
    ("option", "requirement", "count"),
    [
        ("--min_train=3", "size of train", "1"),
        ("--min_valid=3", "size of valid", "1"),
        ("--min_seconds=2", "durations", "4"),
        ("--max_seconds=0.9", "durations", "4"),
        ("--min_bits=24", "bit depth", "4"),
        ("--rates=44100,48000", "sample rate", "4"),
        ("--sources=bass,kick,snare", "whole files", "4"),
    ],
)
def test_requirements_are_options(folder, capsys, option, requirement, count):
    assert main([*LAX, option, str(folder)]) == 1
    assert table(capsys.readouterr().out)[requirement] == count


def test_loudness_is_compared_between_tracks(folder, capsys):
    for path in (folder / "train" / "a").iterdir():
        rewrite(lambda wave: 0.2 * wave)(path)  # 14 dB softer
    assert main([*LAX, str(folder)]) == 1
    out = capsys.readouterr().out
    assert table(out)["loudness spread"] == "1"
    assert re.search(r"1[34]\.\d dB: train/a -\d+\.\d to ", out)
    assert main([*LAX, "--max_spread_db=15", str(folder)]) == 0


def test_a_flat_set_without_mixtures(folder, capsys):
    for path in folder.rglob("mixture.wav"):
        path.unlink()
    assert main([*LAX, str(folder / "train")]) == 0
    out = capsys.readouterr().out
    assert "0 mixtures, 2 tracks without" in out and "size of valid" not in out


def stems_of_noise(seconds=12, rate=8000):
    """Two stems of noise."""
    rng = np.random.default_rng(5)
    return 0.1 * rng.standard_normal((2, seconds * rate, 2))


def write_track(folder, stems: dict, rate=8000):
    folder.mkdir(parents=True)
    for name, wave in stems.items():
        soundfile.write(folder / f"{name}.wav", wave, rate, subtype="FLOAT")


def notes_of(folder, capsys) -> list[str]:
    """What verify notes of a folder of tracks, without the place."""
    main([*LAX, "--min_train=1", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    return [line.split(": ", 2)[2] for line in lines if line.startswith("note: ")]


@pytest.mark.parametrize("milliseconds", [-40, 0, 5, 200])
def test_a_stem_delayed_against_the_mixture_is_noted(tmp_path, capsys, milliseconds):
    bass, other = stems_of_noise()
    moved = np.roll(bass, 8 * milliseconds, axis=0)
    stems = {"mixture": bass + other, "bass": moved, "other": other}
    write_track(tmp_path / "set" / "x", stems)
    path = tmp_path / "set" / "x" / "bass.wav"
    how = f"{abs(milliseconds)} ms {'late' if milliseconds > 0 else 'early'}"
    wanted = [f"{path} seems {how} against mixture.wav"] if milliseconds else []
    assert notes_of(tmp_path / "set", capsys) == wanted


@pytest.mark.parametrize("milliseconds", [0, 30])
def test_hats_that_come_after_the_kick_are_noted(tmp_path, capsys, milliseconds):
    """Without a mixture there are only the beats to go by."""
    noise_kick, noise_hat = stems_of_noise()
    beats = np.zeros(len(noise_kick))
    rng = np.random.default_rng(0)
    for beat in range(1, 22):
        start = 4000 * beat + int(rng.integers(-24, 24))  # a human plays
        beats[start : start + 400] = np.linspace(1, 0, 400)
    hats = np.roll(beats[:, None] * noise_hat, 8 * milliseconds, axis=0)
    stems = {"kick": beats[:, None] * noise_kick, "hihat": hats}
    write_track(tmp_path / "set" / "x", stems)
    found = notes_of(tmp_path / "set", capsys)
    if not milliseconds:
        assert not found
        return
    (note,) = found
    late = re.search(r"hihat.wav seems (\d+) ms late against the beats of kick", note)
    assert late and abs(int(late[1]) - milliseconds) <= 6


@pytest.mark.parametrize("bleed", [0.0, 0.3])
def test_bleed_between_stems_is_noted(tmp_path, capsys, bleed):
    bass, other = stems_of_noise()
    write_track(tmp_path / "set" / "x", {"bass": bass + bleed * other, "other": other})
    found = notes_of(tmp_path / "set", capsys)
    assert found == [
        f"{tmp_path}/set/x/bass.wav and other.wav correlate by 0.29: bleed?"
    ] * bool(bleed)


def test_a_track_that_cannot_be_normalised_is_a_fault(tmp_path, capsys):
    bass, _ = stems_of_noise()
    write_track(tmp_path / "set" / "x", {"bass": bass, "other": -bass})
    main([*LAX, "--min_train=1", str(tmp_path / "set")])
    out = capsys.readouterr().out
    assert f"{tmp_path}/set/x cannot be normalised: its mixture is at -1" in out


def test_the_level_is_that_of_the_track_to_its_end(tmp_path, capsys):
    bass, other = stems_of_noise()
    other[:8000] = 0
    write_track(tmp_path / "set" / "x", {"bass": 1e-6 * bass[:80], "other": other})
    main([*LAX, "--min_train=1", str(tmp_path / "set")])
    assert "cannot be normalised" not in capsys.readouterr().out
