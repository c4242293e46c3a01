"""Manifests of stems: layouts, hold-outs, restrictions, and clear errors."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.music.__main__ import main
from data_prep.music.manifests import (
    MUSDB_VALID_TRACKS,
    SOURCES,
    judged_tracks,
    prepare,
)
from data_prep.verify.__main__ import main as check
from modules.data.manifest import read_manifest
from modules.data.stems import StemDataset
from modules.data.track_levels import measure_levels
from modules.runtime.errors import DataError

RATE = 8000
FRAMES = 4000


def write_track(folder: Path, names=SOURCES, seed=0, mixture=False) -> Path:
    """Stereo noise in 16-bit files; the mixture is their sum."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    total = np.zeros((FRAMES, 2), np.int16)
    for name in names:
        wave = rng.integers(-3000, 3000, (FRAMES, 2), dtype=np.int16)
        soundfile.write(folder / f"{name}.wav", wave, RATE, subtype="PCM_16")
        total += wave
    if mixture:
        soundfile.write(folder / "mixture.wav", total, RATE, subtype="PCM_16")
    return folder


@pytest.fixture
def flat(tmp_path):
    """SDXDB23: twelve tracks without a mixture."""
    for number in range(12):
        write_track(tmp_path / "sdx" / f"{number:02d}-uuid", seed=number)
    return tmp_path / "sdx"


def ids(manifest: str) -> list[str]:
    return [row.id for row in read_manifest(manifest, stems=True)]


def test_a_flat_folder_holds_out_the_first_tracks_and_has_no_mixture(flat, tmp_path):
    manifests = prepare(flat, tmp_path / "save")
    rows = read_manifest(manifests["train"], 4, RATE, stems=True)
    assert ids(manifests["valid"]) == ids(manifests["test"]) == ["00-uuid"]
    assert [row.id for row in rows] == [f"{k:02d}-uuid" for k in range(1, 12)]
    row = rows[0]
    assert (row.mixture, row.channels, row.frames) == ("", 2, FRAMES)
    assert [Path(path).stem for path in row.sources] == list(SOURCES)


def test_the_manifests_do_not_depend_on_when_they_are_made(flat, tmp_path):
    texts = [
        [Path(path).read_text() for path in prepare(flat, tmp_path / name).values()]
        for name in ("a", "b")
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("valid", ["valid", "Valid"])
def test_all_tracks_but_those_of_the_test_are_judged(tmp_path, valid):
    for split in ("train", valid, "test"):
        write_track(tmp_path / split / f"of {split}")
    found = [row.id for row in judged_tracks(tmp_path, SOURCES, "refuse")]
    assert found == sorted(["of train", f"of {valid}"])


@pytest.mark.parametrize("valid_tracks", [0, []])
def test_without_a_hold_out_every_track_is_trained_on(flat, tmp_path, valid_tracks):
    prepare(flat, tmp_path / "save")
    manifests = prepare(flat, tmp_path / "save", valid_tracks=valid_tracks)
    assert list(manifests) == ["train"] and len(ids(manifests["train"])) == 12
    # Those of the earlier call would list tracks that are trained on now.
    assert [path.name for path in (tmp_path / "save").iterdir()] == ["train.csv"]

    prepare(flat, tmp_path / "other", valid_tracks=valid_tracks, test_folder=flat)
    names = sorted(path.name for path in (tmp_path / "other").iterdir())
    assert names == ["test.csv", "train.csv"]


def test_a_fold_can_be_held_out(flat, tmp_path):
    """Two networks each trained on one half are fair judges of the other."""
    halves = []
    for fold in ("1/2", "2/2"):
        manifests = prepare(flat, tmp_path / fold[0], valid_tracks=[fold])
        tables = [
            read_manifest(manifests[k], 4, stems=True) for k in ("valid", "train")
        ]
        halves.append([[row.id for row in rows] for rows in tables])
    assert halves[0] == halves[1][::-1]
    assert halves[0][0][:2] == ["00-uuid", "02-uuid"]


@pytest.mark.parametrize("valid_tracks", [3, ["02-uuid", "00-uuid", "01-uuid"]])
def test_the_hold_out_can_be_chosen(flat, tmp_path, valid_tracks):
    manifests = prepare(flat, tmp_path / "save", valid_tracks=valid_tracks)
    assert ids(manifests["valid"]) == ["00-uuid", "01-uuid", "02-uuid"]
    assert len(ids(manifests["train"])) == 9


def test_a_test_folder_of_another_set(flat, tmp_path):
    write_track(tmp_path / "musdb" / "Song", mixture=True)
    manifests = prepare(flat, tmp_path / "save", test_folder=tmp_path / "musdb")
    (row,) = read_manifest(manifests["test"], stems=True)
    assert row.id == "Song" and row.mixture.endswith("Song/mixture.wav")


def test_musdb_holds_out_its_published_tracks(tmp_path):
    published = sorted(MUSDB_VALID_TRACKS)[:2]
    for name in [*published, "AAA - First", "Zed - Last"]:
        write_track(tmp_path / "hq" / "train" / name, mixture=True)
    write_track(tmp_path / "hq" / "test" / "Test - Song", mixture=True)
    manifests = prepare(tmp_path / "hq", tmp_path / "save")
    assert ids(manifests["valid"]) == published
    assert ids(manifests["train"]) == ["AAA - First", "Zed - Last"]
    assert ids(manifests["test"]) == ["Test - Song"]
    assert check([*manifests.values()]) == 0


def test_own_stems_in_any_order_other_files_ignored(tmp_path):
    stems = ("kick", "hihat", "vocals")
    for split in ("train", "valid"):
        folder = write_track(tmp_path / "own" / split / "a", stems)
        (folder / "notes.txt").write_text("x")
        soundfile.write(folder / "preview.wav", np.zeros(5), 44100)
    (tmp_path / "own" / "train" / "empty").mkdir()
    manifests = prepare(tmp_path / "own", tmp_path / "save", ["vocals", "kick"])
    (row,) = read_manifest(manifests["train"], 2, stems=True)
    assert [Path(path).name for path in row.sources] == ["vocals.wav", "kick.wav"]


def test_stems_restricts_training_and_keeps_the_mixture(flat, tmp_path):
    listed = {name: ["03-uuid", "04-uuid"] for name in SOURCES}
    listed["bass"] = ["04-uuid", "00-uuid"]
    (tmp_path / "clean.json").write_text(json.dumps(listed))
    manifests = prepare(flat, tmp_path / "save", train_stems=tmp_path / "clean.json")
    rows = read_manifest(manifests["train"], 4, stems=True)
    assert [(row.id, row.unused) for row in rows] == [
        ("03-uuid", (2,)),
        ("04-uuid", ()),
    ]
    assert all(len(row.sources) == 4 and all(row.sources) for row in rows)
    assert ids(manifests["valid"]) == ["00-uuid"], "validation is not restricted"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "clean.json: is not valid JSON"),
        ('{"drums": []}', "lists no training track for 'drums'|no list of tracks for"),
        ('{"drums": "all"}', "clean.json: has no list of tracks for 'drums'"),
        (
            json.dumps({name: ["nowhere"] for name in SOURCES}),
            "clean.json: 'drums' lists 'nowhere', which is no track",
        ),
        (
            json.dumps({name: ["00-uuid"] for name in SOURCES}),
            "clean.json: lists no training track for 'drums'",
        ),
    ],
)
def test_a_faulty_list_of_stems(flat, tmp_path, text, message):
    (tmp_path / "clean.json").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        prepare(flat, tmp_path / "save", train_stems=tmp_path / "clean.json")
    assert "\n" not in str(error.value)


def resample_file(path: Path) -> None:
    soundfile.write(path, soundfile.read(path)[0], RATE * 2)


def three_channels(path: Path) -> None:
    soundfile.write(path, np.zeros((FRAMES, 3)), RATE)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (os.remove, "05-uuid/bass.wav: does not exist; add it"),
        (resample_file, "bass.wav is at 16000 Hz, expected 8000 Hz as "),
        (three_channels, "bass.wav has 3 channels, expected stereo"),
        (lambda path: os.link(path, path.with_suffix(".flac")), "there is bass.flac"),
    ],
)
def test_what_stops_the_preparation_is_named_in_one_line(
    flat, tmp_path, spoil, message
):
    spoil(flat / "05-uuid" / "bass.wav")
    with pytest.raises(DataError, match=message) as error:
        prepare(flat, tmp_path / "save")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "save").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unequal": "padded"}, "unequal is 'padded', expected pad, cut or refuse"),
        ({"sources": ["mixture"]}, "sources: 'mixture' is the mixture"),
        ({"sources": ["bass", "bass"]}, "'bass' is there twice"),
        ({"sources": ["../bass"]}, "expected names of files"),
        ({"sources": ["piano"]}, "no tracks found.*holds 00-uuid"),
        ({"valid_tracks": 12}, "one must be held out and one left"),
        ({"valid_tracks": ["00-uid"]}, "no track '00-uid'; nearest is '00-uuid'"),
        ({"sample_rate": 44100}, "is at 8000 Hz, expected 44100 Hz; resample it"),
        ({"test_folder": "/nowhere"}, "/nowhere does not exist"),
        ({"train_stems": "/nowhere.json"}, "/nowhere.json: cannot be read"),
    ],
)
def test_options_that_cannot_be(flat, tmp_path, options, message):
    with pytest.raises(DataError, match=message) as error:
        prepare(flat, tmp_path / "save", **options)
    assert "\n" not in str(error.value)


def test_unequal_lengths_and_mono_are_warned_of_and_survived(flat, tmp_path, caplog):
    path = flat / "05-uuid" / "bass.wav"
    wave, _ = soundfile.read(path)
    soundfile.write(path, wave[:3000, 0], RATE)
    with caplog.at_level(logging.WARNING):
        manifests = prepare(flat, tmp_path / "save")
    (warning,) = caplog.messages
    assert f"{path} ends 0.125 s before drums.wav: silence is appended" in warning
    assert "bass.wav mono, played on both channels" in warning
    rows = {row.id: row for row in read_manifest(manifests["train"], stems=True)}
    assert rows["05-uuid"].frames == 4000
    whole = StemDataset([rows["05-uuid"]], RATE)[0].src
    assert whole.shape == (4, 2, 4000) and not whole[1, :, 3000:].any()
    assert float(whole[1, 0, 2999]) == pytest.approx(wave[2999, 0], abs=1e-4)
    levels = measure_levels(list(rows.values()), tmp_path / "levels.csv")
    cut = StemDataset([rows["05-uuid"]], RATE, 0.4, levels=levels)
    assert all(example.src.isfinite().all() for example in map(cut.__getitem__, [0]))


def test_unequal_lengths_may_be_cut_or_refused(flat, tmp_path, caplog):
    path = flat / "05-uuid" / "bass.wav"
    soundfile.write(path, soundfile.read(path)[0][:3000], RATE)
    manifests = prepare(flat, tmp_path / "save", unequal="cut")
    assert f"{path} ends 0.125 s before drums.wav: all are cut to it" in caplog.text
    rows = {row.id: row for row in read_manifest(manifests["train"], stems=True)}
    assert rows["05-uuid"].frames == 3000
    with pytest.raises(DataError, match="bass.wav ends 0.125 s .* set --unequal=pad"):
        prepare(flat, tmp_path / "save", unequal="refuse")


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("gone.wav")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_text("<html>"), "bass.wav: cannot be read as audio"),
        (lambda path: os.truncate(path, 4000), "bass.wav is truncated: holds"),
        (lambda path: soundfile.write(path, np.zeros((0, 2)), RATE), "bass.wav is emp"),
        (link_to_nowhere, "bass.wav: is a link to gone.wav, which does not exist"),
    ],
)
def test_a_broken_track_is_left_out_of_training_but_not_of_a_score(
    flat, tmp_path, caplog, capsys, spoil, message
):
    spoil(flat / "05-uuid" / "bass.wav")
    manifests = prepare(flat, tmp_path / "save", valid_tracks=["00-uuid"])
    assert f"{flat}/05-uuid/{message}" in caplog.text
    assert "its track is left out of training" in caplog.text
    rows = read_manifest(manifests["train"], stems=True)
    assert "05-uuid" not in {row.id for row in rows}
    with pytest.raises(DataError, match=message):
        prepare(flat, tmp_path / "other", valid_tracks=["05-uuid"])
    # Verify says the same.
    check([str(flat), "--layout=stems"])
    assert f"05-uuid: {flat}/05-uuid/{message}" in capsys.readouterr().out


def test_names_that_differ_in_case_or_form_are_matched_and_said(
    flat, tmp_path, caplog, capsys
):
    (flat / "05-uuid" / "bass.wav").rename(flat / "05-uuid" / "Bass.WAV")
    with caplog.at_level(logging.WARNING):
        manifests = prepare(flat, tmp_path / "save")
    note = f"{flat}/05-uuid/Bass.WAV: is taken for bass"
    assert caplog.messages == [note]
    rows = {row.id: row for row in read_manifest(manifests["train"], stems=True)}
    assert rows["05-uuid"].sources[1] == f"{flat}/05-uuid/Bass.WAV"
    (flat / "album" / "song").mkdir(parents=True)
    (flat / "a.stem.mp4").touch()
    caplog.clear()
    prepare(flat, tmp_path / "save")
    notes = [
        note,
        f"{flat}/a.stem.mp4: is left out, it is no folder of stems",
        f"{flat}/album: is left out, it has no stem; it holds song",
    ]
    assert caplog.messages == notes
    check([str(flat), "--layout=stems"])
    out = capsys.readouterr().out
    assert all(f"note: folder: {text}" in out for text in notes)


def test_stems_that_end_early_are_accepted_and_noted_in_the_same_words(
    flat, tmp_path, caplog, capsys
):
    path = flat / "05-uuid" / "bass.wav"
    soundfile.write(path, soundfile.read(path)[0][:3000], RATE)
    manifest = prepare(flat, tmp_path / "save")["train"]
    note, _ = caplog.messages[0].rsplit(": ", 1)
    assert note == f"{path} ends 0.125 s before drums.wav"
    for asked in ([str(flat), "--layout=stems"], [manifest]):
        check(asked)
        lines = capsys.readouterr().out.splitlines()
        (line,) = (line for line in lines if " ends " in line)
        assert line.startswith("note: ") and line.endswith(f": {note}")


@pytest.mark.parametrize("spoil", [resample_file, three_channels])
def test_what_cannot_be_mixed_is_said_in_the_same_words(flat, tmp_path, capsys, spoil):
    spoil(flat / "05-uuid" / "bass.wav")
    with pytest.raises(DataError) as error:
        prepare(flat, tmp_path / "save")
    check([str(flat), "--layout=stems"])
    assert f"05-uuid: {error.value}\n" in capsys.readouterr().out


def test_what_is_found_instead_of_a_stem_is_said(flat, tmp_path, capsys):
    path = flat / "05-uuid" / "bass.wav"
    path.rename(path.with_name("Bass.mp3"))
    message = f"{path}: does not exist; there is Bass.mp3"
    with pytest.raises(DataError) as error:
        prepare(flat, tmp_path / "save")
    assert str(error.value).startswith(f"{message}; add it, or set --sources or")
    check([str(flat), "--layout=stems"])
    assert f"05-uuid: {message}\n" in capsys.readouterr().out


def test_two_codings_of_a_stem_are_refused_and_verified_in_the_same_words(
    flat, tmp_path, capsys
):
    path = flat / "05-uuid" / "bass.wav"
    os.link(path, path.with_suffix(".flac"))
    with pytest.raises(DataError) as error:
        prepare(flat, tmp_path / "save")
    assert check([str(flat), "--layout=stems"]) == 1
    assert f"folder: {error.value}\n" in capsys.readouterr().out


def test_a_file_in_the_place_of_the_manifests_is_one_line(
    flat, tmp_path, capsys, monkeypatch
):
    (tmp_path / "file").touch()
    options = [f"--data_folder={flat}", f"--save_folder={tmp_path}/file"]
    monkeypatch.setattr("sys.argv", ["stems", *options])
    assert main() == 1
    assert f"error: {tmp_path}/file" in capsys.readouterr().err


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: FRAMES * 2])


def change(wave):
    """A function that replaces the samples of a file."""
    return lambda path: soundfile.write(
        path, wave(soundfile.read(path)[0]), RATE, subtype="FLOAT"
    )


@pytest.mark.parametrize(
    ("spoil", "messages"),
    [
        (change(lambda w: w[:, :1]), ["bass.wav is mono, expected stereo"]),
        (resample_file, ["bass.wav is at 16000 Hz, expected 8000 Hz"]),
        (change(np.zeros_like), ["bass.wav is silent"]),
        (change(lambda w: w * np.nan), ["bass.wav holds NaN or Inf"]),
        (change(lambda w: np.clip(50 * w, -1, 1)), ["bass.wav is clipped: "]),
        (cut_short, ["bass.wav is truncated: holds "]),
        (lambda path: path.write_bytes(b""), ["bass.wav: cannot be read as audio"]),
        (os.remove, ["bass.wav: does not exist"]),
        (change(lambda w: w * 0.9), ["mixture.wav is not the sum of its stems"]),
        (
            change(lambda w: np.zeros((FRAMES, 1))),
            ["bass.wav is mono", "bass.wav is silent"],
        ),
    ],
)
def test_check_names_every_fault_of_stems(tmp_path, capsys, spoil, messages):
    for name in ("a", "b"):
        write_track(tmp_path / "x" / name, mixture=True)
    manifest = prepare(tmp_path / "x", tmp_path / "save", valid_tracks=["a"])["train"]
    assert check([manifest]) == 0
    capsys.readouterr()
    spoil(tmp_path / "x" / "b" / "bass.wav")
    assert check([manifest]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"{manifest}: 1 rows, {len(messages)} faults"
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith(f"{manifest}, row 2 (b): ") and message in line


def test_a_manifest_of_stems_is_none_of_speech_and_the_reverse(flat, tmp_path):
    manifest = prepare(flat, tmp_path / "save")["train"]
    with pytest.raises(DataError, match="row 2: channels is 2, expected mono"):
        read_manifest(manifest)
    text = Path(manifest).read_text().replace(",2,\n", ",3,\n")
    (tmp_path / "odd.csv").write_text(text)
    with pytest.raises(DataError, match="row 2: channels is '3', expected 1 or 2"):
        read_manifest(tmp_path / "odd.csv", stems=True)
    text = Path(manifest).read_text().replace(",2,\n", ",2,5\n")
    (tmp_path / "odd.csv").write_text(text)
    with pytest.raises(DataError, match="row 2: unused is '5', expected .* 1 to 4"):
        read_manifest(tmp_path / "odd.csv", stems=True)


def test_a_test_set_needs_no_other_folder(tmp_path):
    write_track(tmp_path / "hq" / "test" / "Song", mixture=True)
    for more in ({}, {"test_folder": tmp_path / "hq" / "test"}):
        root = tmp_path / ("none" if more else "hq")
        manifests = prepare(root, tmp_path / "save", splits=["test"], **more)
        assert list(manifests) == ["test"] and ids(manifests["test"]) == ["Song"]


def test_a_test_without_test_tracks_is_of_the_validation_tracks(flat, tmp_path):
    manifests = prepare(flat, tmp_path / "save", splits=["test"])
    assert list(manifests) == ["test"] and ids(manifests["test"]) == ["00-uuid"]


def by_stem(folder: Path, tracks: Path) -> Path:
    """The same files in a folder for each stem."""
    for path in sorted(tracks.glob("*/*.wav")):
        place = folder / path.stem / f"{path.parent.name}.wav"
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    return folder


def test_a_stem_that_a_song_lacks_may_be_silent_by_declaration(flat, tmp_path, capsys):
    (flat / "03-uuid" / "bass.wav").unlink()
    (flat / "04-uuid" / "vocals.wav").rename(flat / "04-uuid" / "vocal.wav")
    with pytest.raises(DataError, match=r"03-uuid/bass.wav: .* --missing_stems=silent"):
        prepare(flat, tmp_path / "save")
    assert check([str(flat), "--layout=stems"]) == 1
    assert "bass.wav: does not exist" in capsys.readouterr().out
    manifests = prepare(flat, tmp_path / "save", missing_stems="silent")
    rows = {row.id: row for row in read_manifest(manifests["train"], 4, stems=True)}
    assert rows["03-uuid"].sources[1] == "" and len(rows["03-uuid"].files) == 3
    assert [Path(path).stem for path in rows["05-uuid"].sources] == list(SOURCES)
    lax, stems = ["--min_seconds=0.1", f"--rates={RATE}"], ",".join(SOURCES)
    check([str(flat), *lax, "--missing_stems=silent", f"--sources={stems}"])
    out = capsys.readouterr().out
    assert "03-uuid" not in out.split("requirement")[0]
    assert f"{flat}/04-uuid: has no vocals; not used: vocal\n" in out
    check([manifests["train"]])
    assert "11 rows, 0 faults" in capsys.readouterr().out
    with pytest.raises(DataError, match="'maybe': expected refuse or silent"):
        prepare(flat, tmp_path / "save", missing_stems="maybe")


def test_a_manifest_without_any_stem_in_a_row_is_refused(flat, tmp_path):
    path = Path(prepare(flat, tmp_path / "save")["train"])
    text = path.read_text()
    row = next(line for line in text.splitlines() if line.startswith("03-uuid"))
    kept = row.split(",")
    kept[5:9] = [""] * 4
    path.write_text(text.replace(row, ",".join(kept)))
    with pytest.raises(DataError, match="source_1 is '', expected an absolute path"):
        read_manifest(path, stems=True)


@pytest.mark.parametrize("splits", [("",), ("train", "valid", "test")])
def test_a_folder_for_each_stem_is_the_same_set(tmp_path, capsys, splits):
    for split in splits:
        for name in "abc":
            write_track(tmp_path / "songs" / split / name, mixture=True)
    songs = tmp_path / "songs"
    before = prepare(songs, tmp_path / "one")
    digests = {split: measure_of(path) for split, path in before.items()}
    for split in splits:
        by_stem(tmp_path / "stems" / split, songs / split)
    after = prepare(tmp_path / "stems", tmp_path / "two")
    assert {split: measure_of(path) for split, path in after.items()} == digests
    row = read_manifest(after["train"], stems=True)[0]
    assert row.by_stem and Path(row.sources[0]).parent.name == "drums"
    for more in ([], ["--sources=drums,bass"]):
        check([str(tmp_path / "stems"), "--min_seconds=0.1", *more])
        out = capsys.readouterr().out
        names = "drums, bass " if more else "bass, drums, other, vocals "
        assert f"stems (stems): {3 * len(splits)} tracks" in out and names in out
        assert "is not the sum" not in out or more


def measure_of(manifest: str) -> list:
    """What a set is, wherever its files lie."""
    rows = read_manifest(manifest, stems=True)
    levels = measure_levels(rows, Path(manifest).with_suffix(".levels"))
    waves = [float(StemDataset(rows)[k].src.square().sum()) for k in range(len(rows))]
    return [
        (row.id, levels[row.id], wave) for row, wave in zip(rows, waves, strict=True)
    ]


def test_folders_of_songs_and_of_stems_are_not_mixed_up(tmp_path, caplog):
    songs = tmp_path / "songs"
    for name in ("a", "drums", "b"):  # a song may have the name of a stem
        write_track(songs / name)
    assert ids(prepare(songs, tmp_path / "save", valid_tracks=0)["train"]) == [
        *("a", "b", "drums")
    ]
    write_track(tmp_path / "other" / "x")
    by_stem(songs, tmp_path / "other")
    with pytest.raises(DataError, match=r"folders of stems \(\w+\) and of songs \(a\)"):
        prepare(songs, tmp_path / "save")


def test_faults_of_a_folder_for_each_stem_name_the_file(tmp_path, caplog, capsys):
    for name in "abc":
        write_track(tmp_path / "songs" / name, mixture=True)
    stems = by_stem(tmp_path / "stems", tmp_path / "songs")
    (stems / "bass").rename(stems / "Bass")
    wave, rate = soundfile.read(stems / "drums" / "b.wav")
    soundfile.write(stems / "drums" / "b.wav", wave[: FRAMES // 2, :1], rate)
    soundfile.write(stems / "mixture" / "d.wav", wave, rate)
    caplog.set_level(logging.WARNING)
    prepare(stems, tmp_path / "save", valid_tracks=0)
    for text in (
        f"{stems}/Bass: is taken for bass",
        f"{stems}/mixture/d.wav: is left out, it has no stem",
        f"{stems}/drums/b.wav ends 0.25 s before ../Bass/b.wav",
        f"{stems}: drums/b.wav mono, played on both channels",
    ):
        assert text in caplog.text
    (stems / "other" / "c.wav").unlink()
    with pytest.raises(DataError, match=f"{stems}/other/c.wav: does not exist; add it"):
        prepare(stems, tmp_path / "save", valid_tracks=0)
    caplog.set_level(logging.INFO)
    prepare(stems, tmp_path / "save", valid_tracks=0, missing_stems="silent")
    assert "3 tracks, which lack 1 stems" in caplog.text
