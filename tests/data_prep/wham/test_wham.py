"""WHAM!: the published scales where they are there, else the published rules."""

import csv
import importlib
import io
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from data_prep.wham import generate as wham
from data_prep.wham.__main__ import main
from data_prep.wham.manifests import prepare
from data_prep.wham.noise import extend
from data_prep.wham.scales import read_scales
from modules.audio.levels import loudness_db
from modules.data.manifest import read_manifest
from modules.runtime.errors import DataError
from tests.data_prep.wham.wham_audio import NAMES, make_noise, make_wsj0mix

VERSIONS = [(8000, "min"), (16000, "min"), (8000, "max"), (16000, "max")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    return make_wsj0mix(root / "wsj0mix"), make_noise(root / "noise")


@pytest.fixture(scope="module")
def made(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("wham") / "set"
    assert wham.generate(*folders, out, workers=1) == 6
    return out


def read(root, rate, mode, part, split="tt", name=NAMES[0]):
    path = root / f"wav{rate // 1000}k" / mode / split / part / f"{name}.wav"
    wave_T, found = soundfile.read(path)
    assert found == rate and soundfile.info(path).subtype == "FLOAT"
    return wave_T


def read_pcm(root, rate, mode, part, name=NAMES[0]):
    path = root / f"wav{rate // 1000}k" / mode / "tt" / part / f"{name}.wav"
    return soundfile.read(path)[0]


def placements(root, split="tt"):
    with open(root / "metadata" / f"placement_{split}.csv") as file:
        return {row["utterance_id"]: row for row in csv.DictReader(file)}


def contents(root):
    return {
        path.relative_to(root): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(("rate", "mode"), VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_mixtures_are_sums_under_the_peak(made, rate, mode, name):
    waves = {part: read(made, rate, mode, part, name=name) for part in wham.PARTS}
    speech_T = waves["s1"] + waves["s2"]
    for part, sum_T in (
        ("mix_clean", speech_T),
        ("mix_single", waves["s1"] + waves["noise"]),
        ("mix_both", speech_T + waves["noise"]),
    ):
        assert np.abs(waves[part] - sum_T).max() < 1e-6
    assert max(np.abs(wave_T).max() for wave_T in waves.values()) <= 0.95 + 1e-6


@pytest.mark.parametrize(("rate", "mode"), VERSIONS)
def test_first_speaker_has_the_drawn_snr(folders, made, rate, mode):
    for name, row in placements(made).items():
        start = int(row["speech_start"]) * rate // 16000 if mode == "max" else 0
        speech = slice(start, start + len(read_pcm(folders[0], rate, mode, "s1", name)))
        source_T = read(made, rate, mode, "s1", name=name)[speech]
        noise_T = read(made, rate, mode, "noise", name=name)[speech]
        snr_db = loudness_db(source_T, rate) - loudness_db(noise_T, rate)
        assert snr_db == pytest.approx(float(row["snr_db"]), abs=1e-3)
        assert -3 <= float(row["snr_db"]) <= 6


@pytest.mark.parametrize("rate", [8000, 16000])
def test_sources_keep_their_ratio_and_place(folders, made, rate):
    for mode in ("min", "max"):
        row = placements(made)[NAMES[0]]
        start = int(row["speech_start"]) * rate // 16000 if mode == "max" else 0
        gains = []
        for part in ("s1", "s2"):
            dry_T = read_pcm(folders[0], rate, mode, part)
            wave_T = read(made, rate, mode, part)
            assert not wave_T[:start].any()
            wave_T, rest_T = np.split(wave_T[start:], [len(dry_T)])
            assert not rest_T.any()
            gains.append(wave_T @ dry_T / (dry_T @ dry_T))
            assert np.abs(wave_T - gains[-1] * dry_T).max() < 1e-6
        assert gains[0] == pytest.approx(gains[1], rel=1e-5)


def test_noise_is_the_left_channel_where_the_table_says(folders, made):
    row = placements(made)[NAMES[0]]
    path = folders[1] / "tt" / row["noise_file"]
    start = int(row["noise_start"])
    left_T = soundfile.read(path)[0][start : start + int(row["noise_frames"]), 0]
    noise_T = read(made, 16000, "max", "noise")
    gain = noise_T @ left_T / (left_T @ left_T)
    assert np.abs(noise_T - gain * left_T).max() < 1e-6
    slow_T = read(made, 8000, "min", "noise")
    begin = int(row["speech_start"]) // 2
    halved_T = resample_poly(left_T, 1, 2)[begin : begin + len(slow_T)]
    gain = slow_T @ halved_T / (halved_T @ halved_T)
    assert np.abs(slow_T - gain * halved_T).max() < 1e-6


def test_workers_order_and_restart_change_no_bit(folders, made, tmp_path):
    out = tmp_path / "again"
    versions = {"sample_rates": [8000], "modes": ["min"]}
    alone = tmp_path / "alone"
    assert wham.generate(*folders, alone, **versions, workers=1) == 6
    wham.generate(*folders, out, **versions, workers=2)
    gone = out / "wav8k/min/tr/mix_both" / f"{NAMES[1]}.wav"
    gone.unlink()
    assert wham.generate(*folders, out, **versions, workers=1) == 1
    assert contents(out) == contents(alone)
    with pytest.raises(DataError, match="begun with placement="):
        wham.generate(*folders, out, **versions, seed=1)
    with pytest.raises(DataError, match="begun with modes="):
        wham.generate(*folders, out, sample_rates=[8000], modes=["max", "min"])


def test_written_placement_makes_the_same_set(folders, made, tmp_path):
    table = tmp_path / "tables"
    shutil.copytree(made / "metadata", table)
    out = tmp_path / "out"
    wham.generate(*folders, out, placement=table, seed=9, workers=1)
    assert contents(out) == contents(made)
    text = (table / "placement_cv.csv").read_text()
    (table / "placement_cv.csv").write_text(text.replace(NAMES[1], "other"))
    with pytest.raises(
        DataError, match=f"placement_cv.csv: has no row for '{NAMES[1]}"
    ):
        wham.generate(*folders, tmp_path / "bad", placement=table)
    (table / "placement_cv.csv").write_text(text.replace(".wav,", ".wav,x"))
    with pytest.raises(DataError, match="placement_cv.csv, row 2: invalid literal"):
        wham.generate(*folders, tmp_path / "bad", placement=table)
    assert not (tmp_path / "bad").exists()


def test_placement_that_is_no_text_is_named(folders, tmp_path):
    (tmp_path / "placement_tr.csv").write_bytes(b"utterance_id\xff")
    with pytest.raises(DataError, match="placement_tr.csv, row 1: has no column"):
        wham.generate(*folders, tmp_path / "out", placement=tmp_path)


def write_scales(folder, names, as_objects=False):
    rng = np.random.default_rng(3)
    (folder / "metadata").mkdir(exist_ok=True)
    ids = np.array([f"{name}.wav" for name in names], object if as_objects else None)
    arrays = {"utterance_id": ids, "speech_start_sample_16k": np.array([1601, 800])}
    for rate in (8, 16):
        for mode in ("min", "max"):
            for kind in ("speech", "noise"):
                key = f"scaling_wham_{kind}_{rate}k_{mode}"
                arrays[key] = rng.uniform(0.2, 1.0, len(names))
    for split in ("tr", "cv", "tt"):
        np.savez(folder / "metadata" / f"scaling_{split}.npz", **arrays)
    return arrays


@pytest.mark.parametrize("as_objects", [False, True])
def test_published_scales_are_used_exactly(folders, tmp_path, as_objects):
    noise = make_noise(tmp_path / "noise", names=NAMES, seconds=2.0)
    arrays = write_scales(noise, NAMES[::-1], as_objects)  # in another order
    out = tmp_path / "out"
    wham.generate(folders[0], noise, out, workers=1)
    left_T = soundfile.read(noise / "tt" / f"{NAMES[0]}.wav")[0][:, 0]
    for rate, mode in VERSIONS:
        key = f"{rate // 1000}k_{mode}"
        start = 800 * rate // 16000  # NAMES[0] is the second of the archive
        noise_T = resample_poly(left_T, rate, 16000)
        dry_T = read_pcm(folders[0], rate, mode, "s2")
        if mode == "min":
            noise_T = noise_T[start : start + len(dry_T)]
        else:
            dry_T = np.pad(dry_T, (start, len(noise_T) - start - len(dry_T)))
        for part, wave_T in (("noise", noise_T), ("s2", dry_T)):
            kind = "noise" if part == "noise" else "speech"
            gain = arrays[f"scaling_wham_{kind}_{key}"][1]
            error_T = read(out, rate, mode, part) - gain * wave_T
            assert np.abs(error_T).max() < 1e-7


def rewrite_ids(path, ids, protocol):
    """The array of objects as a numpy of that protocol wrote it."""
    with np.load(path, allow_pickle=True) as arrays:
        others = {k: arrays[k] for k in arrays.files if k != "utterance_id"}
    np.savez(path, **others)
    ids = np.array(ids, object)
    file = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(ids)
    np.lib.format.write_array_header_1_0(file, header)
    pickle.dump(ids, file, protocol=protocol)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("utterance_id.npy", file.getvalue())


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_scales_of_any_numpy_are_read(tmp_path, protocol):
    # The archive is of 2019: numpy pickled by protocol 2 until 1.17.
    write_scales(tmp_path, NAMES)
    path = tmp_path / "metadata" / "scaling_tt.npz"
    rewrite_ids(path, [f"{name}.wav" for name in NAMES], protocol)
    scales = read_scales(path, NAMES[1:], VERSIONS)
    assert scales[NAMES[1]].speech_start == 800


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("/tmp/wham_scales_were_executed",)


def test_scales_are_data_not_a_program(folders, tmp_path):
    noise = make_noise(tmp_path / "noise", names=NAMES)
    arrays = write_scales(noise, NAMES)
    path = noise / "metadata" / "scaling_tr.npz"
    bad = np.array([Malicious(), "b"], object)
    np.savez(path, **(arrays | {"utterance_id": bad}))
    with pytest.raises(DataError, match="scaling_tr.npz: is not WHAM!'s file"):
        wham.generate(folders[0], noise, tmp_path / "out")
    assert not os.path.exists("/tmp/wham_scales_were_executed")
    arrays.pop("scaling_wham_noise_8k_max")
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="no array 'scaling_wham_noise_8k_max'"):
        wham.generate(folders[0], noise, tmp_path / "out")
    path.write_bytes(b"PK\3\4 cut off")
    with pytest.raises(DataError, match="scaling_tr.npz: cannot be read"):
        wham.generate(folders[0], noise, tmp_path / "out")
    path.unlink()
    with pytest.raises(DataError, match="scaling_tr.npz: does not exist, but others"):
        wham.generate(folders[0], noise, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_short_noise_is_repeated_without_a_jump(folders, tmp_path):
    noise = make_noise(tmp_path / "noise", seconds=0.5)
    out = tmp_path / "out"
    wham.generate(folders[0], noise, out, sample_rates=[16000], workers=1)
    assert len(read(out, 16000, "max", "noise")) > 20000
    hum_T = np.sin(np.arange(16000) / 50)
    long_T = extend(hum_T, 60000, 16000)
    assert len(long_T) == 60000 and np.abs(np.diff(long_T)).max() < 0.06
    power = extend(np.random.default_rng(0).standard_normal(64000), 200000, 16000)
    assert np.var(power[50000:64000]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s, n: (n / "tt" / "hum.wav").write_text("no"), "hum.wav: cannot be"),
        (lambda s, n: shutil.rmtree(n / "cv"), "noise/cv: does not exist"),
        (lambda s, n: shutil.rmtree(s / "wav8k/max/cv/s2"), "max/cv/s2: does not"),
        (
            lambda s, n: (s / f"wav8k/min/tr/s2/{NAMES[0]}.wav").unlink(),
            "tr/s2: 01aa0101_1.5_02ba0102_-1.5.wav is only",
        ),
        (
            lambda s, n: soundfile.write(
                s / f"wav8k/min/tr/s1/{NAMES[0]}.wav", np.zeros(6401), 8000
            ),
            "is silent",
        ),
        (
            lambda s, n: soundfile.write(
                s / f"wav8k/min/tr/s2/{NAMES[0]}.wav", np.ones(7000), 8000
            ),
            "has 7000 samples",
        ),
        (
            lambda s, n: (s / "wav16k/max/cv/s3").mkdir(),
            "cv/s3: exists, but a mixture here has 2 talkers",
        ),
        (
            lambda s, n: soundfile.write(n / "tr" / "hum.wav", np.ones(9000), 8000),
            "hum.wav is at 8000 Hz, expected 16000",
        ),
    ],
)
def test_bad_input_is_named(folders, tmp_path, damage, message):
    sources, noise = tmp_path / "wsj0mix", tmp_path / "noise"
    shutil.copytree(folders[0], sources)
    shutil.copytree(folders[1], noise)
    damage(sources, noise)
    with pytest.raises(DataError) as error:
        wham.generate(sources, noise, tmp_path / "out", workers=1)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "speakers"), [("mix_both", 2), ("mix_clean", 2), ("mix_single", 1)]
)
def test_manifests(made, tmp_path, task, speakers):
    manifests = prepare(made, tmp_path, speakers, 8000, "max", task)
    for split, folder in (("train", "tr"), ("valid", "cv"), ("test", "tt")):
        rows = read_manifest(manifests[split], speakers, 8000)
        assert [row.id for row in rows] == list(NAMES)
        for row in rows:
            assert f"/wav8k/max/{folder}/{task}/" in row.mixture
            assert bool(row.noise) == (task != "mix_clean")
            waves = [soundfile.read(file)[0] for file in row.files]
            assert np.abs(waves[0] - sum(waves[1:])).max() < 1e-6
            assert len(row.sources) == speakers


def test_hidden_files_of_macos_are_no_audio(folders, made, tmp_path):
    sources, noise = tmp_path / "wsj0mix", tmp_path / "noise"
    shutil.copytree(folders[0], sources)
    shutil.copytree(folders[1], noise)
    for folder in (sources / "wav16k/max/tr/s1", noise / "tt"):
        (folder / "._a.wav").write_bytes(b"\0\5\x16\7")
    wham.generate(sources, noise, tmp_path / "out", workers=1)
    tables = "metadata/placement_tt.csv"
    assert (tmp_path / "out" / tables).read_text() == (made / tables).read_text()


def test_wrong_arguments_of_prepare(made, tmp_path):
    with pytest.raises(DataError, match="task is 'mix', expected one of mix_clean,"):
        prepare(made, tmp_path, task="mix")
    with pytest.raises(DataError, match="has 1 speakers; set --num_spks=1"):
        prepare(made, tmp_path, task="mix_single")
    with pytest.raises(DataError, match=r"looked there for wav8k/min/{tr,cv,tt}/"):
        prepare(made.parent, tmp_path)
    with pytest.raises(DataError, match="mode is 'mean', expected"):
        prepare(made, tmp_path, mode="mean")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["wsj0mix", "librimix", "wham", "whamr"])
def test_help_names_what_makes_the_set(name, capsys, monkeypatch):
    module = importlib.import_module(f"data_prep.{name}.__main__")
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit):
        module.main()
    text = capsys.readouterr().out
    assert f"data_prep.{name} generate" in text and "--data_folder" in text


def test_command_line(folders, tmp_path, capsys):
    options = [f"--wsj0mix={folders[0]}", f"--wham_noise={folders[1]}"]
    versions = ["--sample_rates", "8000", "--modes", "min", "--workers=1"]
    out = f"--out={tmp_path}/set"
    assert main(["generate", *options, out, *versions]) == 0
    made = [f"--data_folder={tmp_path}/set", f"--save_folder={tmp_path}/manifests"]
    assert main(made) == 0
    assert f"test: {tmp_path}/manifests/test.csv" in capsys.readouterr().out
    assert main(["generate", *options, out, "--modes", "mean"]) == 1
    assert capsys.readouterr().err.startswith("error: modes: ['mean'], expected")
