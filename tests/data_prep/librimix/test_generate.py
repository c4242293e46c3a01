"""LibriMix made from its parts: the recipe's numbers, restarts, refusals."""

import csv
import math

import numpy as np
import pytest
import scipy.signal
import soundfile

from data_prep.librimix.__main__ import main
from data_prep.librimix.audio import FADE, RATE, extend, read_noise
from data_prep.librimix.generate import generate
from data_prep.librimix.manifests import prepare
from data_prep.librimix.metadata import (
    Mixture,
    Part,
    find_metadata,
    read_metadata,
)
from modules.data.manifest import read_manifest
from modules.runtime.errors import DataError
from modules.runtime.tables import write_table
from tests.data_prep.sums import assert_sums

SETS = {"train-clean-100": "tr", "dev-clean": "cv", "test-clean": "tt"}
LSB = 1 / 2**15


def part(talker, seconds, gain):
    name = f"{talker}-1-0000"
    return Part(f"{{set}}/{talker}/1/{name}.flac", gain), round(seconds * RATE)


def write_metadata(path, mixtures):
    """The table of two talkers and noise, as LibriMix publishes it."""
    parts = ("source_1", "source_2", "noise")
    header = [f"{part}_{cell}" for part in parts for cell in Part._fields]
    rows = [
        [m.name, *(cell for part in (*m.sources, m.noise) for cell in part)]
        for m in mixtures
    ]
    write_table(path, ["mixture_ID", *header], rows)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three talkers and a short stereo noise for each set, and two mixtures of them."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for name, kind in SETS.items():
        talkers = [part(11, 0.9, 0.7), part(22, 1.31, 0.4), part(33, 1.1, 1.5)]
        for source, frames in talkers:
            path = root / "LibriSpeech" / source.path.format(set=name)
            path.parent.mkdir(parents=True)
            soundfile.write(path, 0.1 * rng.standard_normal(frames), RATE)
        (root / "wham_noise" / kind).mkdir(parents=True)
        stereo_TC = 0.05 * rng.standard_normal((RATE, 2))
        soundfile.write(
            root / "wham_noise" / kind / "hum.wav", stereo_TC, RATE, subtype="FLOAT"
        )
        sources = [s._replace(path=s.path.format(set=name)) for s, _ in talkers]
        speed = "sp08" if kind == "tr" else ""
        mixtures = [
            Mixture(f"a-{k}_b", pair, Part(f"{kind}/hum{speed}.wav", 0.9 / (k + 1)))
            for k, pair in enumerate(
                [(sources[0], sources[1]), (sources[1], sources[2])]
            )
        ]
        table = root / "metadata" / "Libri2Mix" / f"libri2mix_{name}.csv"
        write_metadata(table, mixtures)
        table.with_name(f"{table.stem}_info.csv").write_text("mixture_ID\n")
    return root


def options(corpus, out):
    return {
        "librispeech": corpus,
        "metadata": corpus / "metadata",
        "wham_noise": corpus,
        "out": out,
    }


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    return generate(**options(corpus, tmp_path_factory.mktemp("made")), workers=1)


def read(path):
    wave_T, rate = soundfile.read(path)
    assert soundfile.info(path).subtype == "PCM_16"
    return wave_T, rate


@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_files_follow_the_recipe(corpus, made, rate, mode):
    place = made / f"wav{rate // 1000}k" / mode / "dev"
    sources = []
    for talker, gain in ((11, 0.7), (22, 0.4)):
        path = f"LibriSpeech/dev-clean/{talker}/1/{talker}-1-0000.flac"
        wave_T = soundfile.read(corpus / path)[0] * gain
        sources.append(wave_T)
    longest = max(map(len, sources))
    noise_T = soundfile.read(corpus / "wham_noise/cv/hum.wav")[0][:, 0]
    sources.append(0.9 * extend(noise_T, longest))
    parts = [scipy.signal.resample_poly(wave_T, rate, RATE) for wave_T in sources]
    length = (min if mode == "min" else max)(len(wave_T) for wave_T in parts)
    parts = [np.pad(w[:length], (0, max(0, length - len(w)))) for w in parts]
    parts += [parts[0] + parts[1], sum(parts), parts[0] + parts[2]]
    names = ("s1", "s2", "noise", "mix_clean", "mix_both", "mix_single")
    assert sorted(names) == sorted(path.name for path in place.iterdir())
    for name, expected_T in zip(names, parts, strict=True):
        wave_T, found_rate = read(place / name / "a-0_b.wav")
        assert found_rate == rate and len(wave_T) == length
        assert np.abs(wave_T - expected_T).max() < 1.6 * LSB


def test_every_file_is_listed_with_its_length_and_levels(made):
    for type_, labels in (
        ("mix_clean", ["source_1", "source_2"]),
        ("mix_both", ["source_1", "source_2", "noise"]),
        ("mix_single", ["source_1", "noise"]),
    ):
        folder = made / "wav8k" / "max" / "metadata"
        tables = {}
        for kind in ("mixture", "metrics"):
            with open(folder / f"{kind}_test_{type_}.csv", newline="") as file:
                tables[kind] = list(csv.DictReader(file))
        paths = [f"{label}_path" for label in labels]
        row = tables["mixture"][1]
        assert list(row) == ["mixture_ID", "mixture_path", *paths, "length"]
        assert row["mixture_ID"] == tables["metrics"][1]["mixture_ID"] == "a-1_b"
        mixture_T, _ = read(row["mixture_path"])
        assert len(mixture_T) == int(row["length"])
        for label in labels:
            part_T, _ = read(row[f"{label}_path"])
            rest_T = mixture_T - part_T
            snr_db = 10 * math.log10(np.square(part_T).sum() / np.square(rest_T).sum())
            assert float(tables["metrics"][1][f"{label}_SNR"]) == pytest.approx(
                snr_db, abs=0.01
            )


@pytest.mark.parametrize("task", ["mix_clean", "mix_both", "mix_single"])
def test_what_is_made_prepares_without_a_fault(made, tmp_path, task):
    count = 1 if task == "mix_single" else 2
    for path in prepare(made, tmp_path, count, 16000, "max", task).values():
        rows = read_manifest(path, count, 16000)
        assert len(rows) == 2
        assert_sums(rows)


def contents(root):
    return {
        path.relative_to(root): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".csv"
    }


def test_workers_and_restarts_change_no_bit(corpus, made, tmp_path):
    settings = options(corpus, tmp_path) | {"sample_rates": [8000]}
    root = generate(**settings, modes=["min"], sets=["dev-clean"], workers=2)
    first = contents(root)
    assert len(first) == 2 * 6 + 2
    for path in first:
        assert first[path] == contents(made)[path]
    gone = root / "wav8k/min/dev/noise/a-1_b.wav"
    gone.unlink()
    kept = root / "wav8k/min/dev/s1/a-0_b.wav"
    kept.write_bytes(b"untouched")
    assert generate(**settings, modes=["min"], sets=["dev-clean"], workers=1) == root
    assert kept.read_bytes() == b"untouched" and gone.read_bytes()
    kept.unlink()
    generate(**settings, workers=1)  # more versions of more sets into the same folder
    everything = contents(made)
    assert contents(root) == {
        p: everything[p] for p in everything if "16k" not in str(p)
    }
    assert not list(root.glob(".*"))


def test_a_killed_run_leaves_what_the_tables_need(corpus, tmp_path, monkeypatch):
    from data_prep.librimix import generate as librimix_generate

    settings = options(corpus, tmp_path) | {"modes": ["min"], "workers": 1}
    table = tmp_path / "Libri2Mix/wav8k/min/metadata/mixture_dev_mix_both.csv"

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(librimix_generate, "_write_tables", killed)
        generate(**settings)
    assert not table.exists()
    monkeypatch.setattr(librimix_generate, "_make", killed)
    generate(**settings)  # makes nothing again
    assert len(table.read_text().splitlines()) == 3


def test_clean_mixtures_need_no_noise(corpus, made, tmp_path):
    settings = options(corpus, tmp_path) | {"wham_noise": None, "workers": 1}
    with pytest.raises(DataError, match="need --wham_noise; or --types mix_clean"):
        generate(**settings)
    root = generate(**settings, types=["mix_clean"], modes=["min"])
    assert not list(root.rglob("noise"))
    for path, content in contents(root).items():
        if path.suffix == ".wav":
            assert content == contents(made)[path]


def test_noise_repeats_with_constant_sum_and_no_jump():
    ramp_T = np.arange(20000, dtype=np.float32)
    longer_T = extend(ramp_T, 70000)
    assert len(longer_T) == 70000
    assert np.array_equal(longer_T[: 20000 - FADE], ramp_T[:-FADE])
    period = 20000 - FADE
    assert np.array_equal(longer_T[FADE + period : 2 * period], ramp_T[FADE:period])
    assert np.abs(np.diff(extend(np.ones(9000, np.float32), 50000))).max() < 1e-6
    assert np.array_equal(extend(ramp_T, 300), ramp_T[:300])
    with pytest.raises(DataError, match="8001 samples is too short to be repeated"):
        extend(ramp_T[:FADE], 20000)


def test_librispeech_may_be_in_wav(corpus, made, tmp_path):
    copy = tmp_path / "LibriSpeech"
    for path in corpus.glob("LibriSpeech/**/*.flac"):
        wave_T, rate = soundfile.read(path)
        wav = (copy / path.relative_to(corpus / "LibriSpeech")).with_suffix(".wav")
        wav.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(wav, wave_T, rate, soundfile.info(path).subtype)
    small = {"sample_rates": [8000], "modes": ["min"], "types": ["mix_both"]}
    corpus_in_wav = options(corpus, tmp_path) | {"librispeech": copy}
    root = generate(**corpus_in_wav, **small, sets=["dev-clean"], workers=1)
    waves = list(root.rglob("*.wav"))
    assert waves
    for path in waves:
        assert path.read_bytes() == (made / path.relative_to(root)).read_bytes()


@pytest.mark.parametrize(("speed", "hz"), [("sp08", 800), ("sp12", 1200)])
def test_noise_at_another_speed_is_made_where_there_is_no_file(tmp_path, speed, hz):
    tone_T = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(4 * RATE) / RATE)
    soundfile.write(tmp_path / "tone.wav", tone_T, RATE)
    noise_T = read_noise(tmp_path, f"tone{speed}.wav", 3 * RATE)
    assert len(noise_T) == 3 * RATE
    spectrum = np.abs(np.fft.rfft(noise_T[:RATE] * np.hanning(RATE)))
    assert np.argmax(spectrum) == hz
    soundfile.write(tmp_path / f"tone{speed}.wav", tone_T / 2, RATE)
    as_is_T = read_noise(tmp_path, f"tone{speed}.wav", 3 * RATE)
    assert np.allclose(as_is_T, tone_T[: 3 * RATE] / 2, atol=2 * LSB)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"librispeech": "none"}, "none: no such folder of LibriSpeech"),
        (
            {"wham_noise": "LibriSpeech"},
            "hum.wav: does not exist, one of 3 missing",
        ),
        ({"metadata": "LibriSpeech"}, r"holds no libri2mix_\*.csv; get the metadata"),
        ({"num_spks": 3}, r"holds no libri3mix_\*.csv"),
        ({"sets": ["train-clean-360"]}, "but no train-clean-360"),
    ],
)
def test_wrong_folders_are_one_clear_line(corpus, tmp_path, change, message):
    folders = {
        k: v if isinstance(v, list | int) else corpus / v for k, v in change.items()
    }
    with pytest.raises(DataError, match=message) as error:
        generate(**(options(corpus, tmp_path) | folders), workers=1)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_other_metadata_cannot_continue_a_folder(corpus, made, tmp_path):
    table = tmp_path / "libri2mix_dev-clean.csv"
    text = (corpus / "metadata/Libri2Mix" / table.name).read_text()
    table.write_text(text.replace("0.7", "0.8"))
    changed = options(corpus, made.parent) | {"metadata": tmp_path}
    with pytest.raises(DataError, match="was begun with sha256 of the metadata="):
        generate(**changed, workers=1)
    (tmp_path / "Libri2Mix").mkdir()
    (tmp_path / "Libri2Mix" / "theirs.wav").touch()
    table.rename(tmp_path / "Libri2Mix" / table.name)
    with pytest.raises(DataError, match="Libri2Mix: is not empty"):
        generate(**(changed | {"out": tmp_path}), workers=1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("source_2_gain", "gain", "row 1: has no column 'source_2_gain'"),
        (",0.4,", ",nan,", "row 2: source_2_path is .*_gain is 'nan'; expected"),
        (",0.4,", ",,", "row 2: source_2_path"),
        ("a-0_b", "../b", "row 2: mixture_ID is '../b', which cannot name a file"),
        ("a-1_b", "a-0_b", "row 3: a-0_b is there twice"),
        ("noise_path", "source_3_path", "row 1: has more than 2 sources"),
    ],
)
def test_bad_metadata_names_file_and_row(corpus, tmp_path, old, new, message):
    table = tmp_path / "libri2mix_dev-clean.csv"
    text = (corpus / "metadata/Libri2Mix" / table.name).read_text()
    table.write_text(text.replace(old, new))
    with pytest.raises(DataError, match=message) as error:
        read_metadata(table, 2)
    assert str(table) in str(error.value)


def test_metadata_that_is_no_text_is_named(tmp_path):
    table = tmp_path / "libri2mix_dev-clean.csv"
    table.write_bytes(b"mixture_ID,source_1_path\xff")
    with pytest.raises(DataError, match="libri2mix_dev-clean.csv, row 1: has no col"):
        read_metadata(table, 2)


def test_hidden_files_of_macos_are_no_metadata(corpus, tmp_path):
    folder = tmp_path / "metadata"
    folder.mkdir()
    table = corpus / "metadata/Libri2Mix/libri2mix_dev-clean.csv"
    (folder / table.name).write_text(table.read_text())
    (folder / f"._{table.name}").write_bytes(b"\0\5\x16\7")
    assert list(find_metadata(folder, 2, None)) == ["dev-clean"]


def test_bad_audio_is_named(corpus, tmp_path):
    folder = tmp_path / "dev-clean"
    for talker in (11, 22, 33):
        path = folder / str(talker) / "1" / f"{talker}-1-0000.flac"
        path.parent.mkdir(parents=True)
        soundfile.write(path, np.zeros(8000), 8000)
    settings = options(corpus, tmp_path) | {"librispeech": tmp_path, "workers": 1}
    with pytest.raises(DataError, match="11-1-0000.flac is at 8000 Hz, expected 16000"):
        generate(**settings, sets=["dev-clean"])
    path = folder / "11" / "1" / "11-1-0000.flac"
    path.write_text("no audio")
    with pytest.raises(DataError, match="11-1-0000.flac: cannot be read as audio"):
        generate(**settings, sets=["dev-clean"])


def test_command_line(corpus, tmp_path, capsys):
    arguments = [
        *("generate", f"--librispeech={corpus}", f"--metadata={corpus}/metadata"),
        *("--types", "mix_clean", "--modes", "min", "--sets", "dev-clean"),
        *("--workers=1", f"--out={tmp_path}"),
    ]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == f"{tmp_path}/Libri2Mix"
    assert main([*arguments, "--num_spks=3"]) == 1
    assert capsys.readouterr().err.count("error: ") == 1
