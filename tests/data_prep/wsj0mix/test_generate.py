"""Mixtures of the lists: the published recipe, to the bit, however they are made."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from data_prep.verify.__main__ import main as verify
from data_prep.wsj0mix.generate import generate
from data_prep.wsj0mix.manifests import prepare
from modules.data.manifest import read_manifest
from modules.runtime.errors import DataError
from tests.modules.audio.test_active_level import counted_power

RATE = 16000
UTTERANCES = {"01ta0101": 0.5, "20ga010m": 0.62, "40eo020p": 0.41, "445c020q": 0.55}


@pytest.fixture
def wsj0(tmp_path):
    """Bursts of noise as utterances; `lists` beside them names 2 mixtures a split."""
    rng = np.random.default_rng(0)
    for name, seconds in UTTERANCES.items():
        path = tmp_path / "wsj0" / "si_tr_s" / name[:3] / f"{name}.wav"
        path.parent.mkdir(parents=True)
        bursts = np.repeat(10 ** rng.uniform(-1.5, 0, 20), round(seconds * RATE / 20))
        wave = 0.1 * bursts * rng.standard_normal(len(bursts))
        soundfile.write(path, wave, RATE, subtype="PCM_16")
    lists = tmp_path / "lists"
    lists.mkdir()
    paths = [f"wsj0/si_tr_s/{name[:3]}/{name}.wav" for name in UTTERANCES]
    a, b, c, d = paths
    for split in ("tr", "cv", "tt"):
        pairs = f"{a} 1.9857 {b} -1.9857 \n{c} 0.10009 {d} -0.10009 \n"
        (lists / f"mix_2_spk_{split}.txt").write_text(pairs)
        triples = f"{a} 1.9857 {b} -1.9857 {c} 0 \n{d} 2.4 {c} -2.4 {b} 0 \n"
        (lists / f"mix_3_spk_{split}.txt").write_text(triples)
    return tmp_path


def run(wsj0: Path, out: str = "out", **options) -> Path:
    return generate(wsj0, wsj0 / "lists", wsj0 / out, **{"workers": 1} | options)


def tree(folder: Path) -> dict[str, bytes]:
    """Contents of all files by their place."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def published_mixture(wsj0: Path, line: str, rate: int, mode: str) -> dict:
    """One line of a list, in float64, straight from the description of the recipe."""
    fields = line.split()
    sources, name = [], []
    for path, snr in zip(fields[0::2], fields[1::2], strict=True):
        pcm, _ = soundfile.read(wsj0 / path, dtype="int16")
        s16 = pcm / 32768.0
        s8 = resample_poly(s16, 1, 2)
        s = s8 if rate == 8000 else s16
        sources.append(s / math.sqrt(counted_power(s8, 8000)) * 10 ** (float(snr) / 20))
        name.append(f"{Path(path).stem}_{float(snr):12.8g}".replace(" ", ""))
    shortest, longest = min(map(len, sources)), max(map(len, sources))
    if mode == "min":
        sources = [s[:shortest] for s in sources]
    else:
        sources = [np.concatenate([s, np.zeros(longest - len(s))]) for s in sources]
    mixture = sum(sources)
    scale = 0.9 / max(np.max(np.abs(wave)) for wave in [mixture, *sources])
    waves = {"mix": mixture} | {f"s{k + 1}": s for k, s in enumerate(sources)}
    return {
        f"{part}/{'_'.join(name)}.wav": np.int16(np.round(2.0**15 * scale * wave))
        for part, wave in waves.items()
    }


@pytest.mark.parametrize("num_spks", [2, 3])
def test_it_is_the_published_recipe_to_the_last_bit(wsj0, num_spks):
    root = run(wsj0, num_spks=num_spks)
    line = (wsj0 / "lists" / f"mix_{num_spks}_spk_tt.txt").read_text().splitlines()[0]
    for rate in (8000, 16000):
        for mode in ("min", "max"):
            folder = root / f"wav{rate // 1000}k" / mode / "tt"
            for place, expected in published_mixture(wsj0, line, rate, mode).items():
                wave, written_rate = soundfile.read(folder / place, dtype="int16")
                assert written_rate == rate
                assert np.array_equal(wave, expected), (place, rate, mode)
                assert soundfile.info(folder / place).subtype == "PCM_16"
    assert len(list(root.rglob("*.wav"))) == 2 * 3 * 4 * (num_spks + 1)


def test_names_and_peak_are_those_published(wsj0):
    root = run(wsj0)
    folder = root / "wav16k" / "max" / "tr"
    names = sorted(path.name for path in (folder / "mix").iterdir())
    assert names == [
        "01ta0101_1.9857_20ga010m_-1.9857.wav",
        "40eo020p_0.10009_445c020q_-0.10009.wav",
    ]
    waves = [
        soundfile.read(folder / part / names[0])[0] for part in ("mix", "s1", "s2")
    ]
    assert abs(max(np.abs(wave).max() for wave in waves) - 0.9) < 1 / 2**15


def test_workers_and_interruptions_do_not_change_a_bit(wsj0):
    whole = tree(run(wsj0))
    assert tree(run(wsj0, "two", workers=2)) == whole
    again = run(wsj0, "again")
    victims = sorted(again.rglob("*.wav"))[::7]
    for path in victims:
        path.unlink()
    victims[0].touch()  # a power cut can leave an empty file
    run(wsj0, "again")
    assert tree(again) == whole


def test_what_is_made_is_verified_and_prepared(wsj0, capsys):
    root = run(wsj0, num_spks=3)
    assert verify([str(root)]) == 0
    assert "24 mixtures, 0 faults" in capsys.readouterr().out
    manifests = prepare(root, wsj0 / "save", 3, 16000, "max")
    assert [len(read_manifest(path, 3, 16000)) for path in manifests.values()] == [
        2
    ] * 3


def test_versions_can_be_added_but_not_another_list(wsj0):
    root = run(wsj0, sample_rates=[8000], modes=["min"])
    assert {path.name for path in root.iterdir() if path.is_dir()} == {"wav8k"}
    before = tree(root)
    run(wsj0, sample_rates=[8000, 16000])
    assert {name: tree(root)[name] for name in before} == before
    path = wsj0 / "lists" / "mix_2_spk_cv.txt"
    path.write_text(path.read_text().replace("1.9857", "1.5"))
    with pytest.raises(DataError, match="begun with lists="):
        run(wsj0)


def test_published_levels_are_used_when_given(wsj0):
    (wsj0 / "levels").mkdir()
    lines = [f"{name} {0.001 * (k + 1)}\n" for k, name in enumerate(UTTERANCES)]
    (wsj0 / "levels" / "activlev_a.txt").write_text("".join(lines[:1]))
    (wsj0 / "levels" / "activlev_b.txt").write_text("".join(lines[1:]))
    (wsj0 / "levels" / "._activlev_b.txt").write_bytes(b"\0\5\x16\7\xff")  # macOS
    root = run(wsj0, levels=wsj0 / "levels", sample_rates=[16000], modes=["min"])
    name = "01ta0101_1.9857_20ga010m_-1.9857.wav"
    read = [soundfile.read(root / "wav16k/min/tr" / s / name)[0] for s in ("s1", "s2")]
    raw = [
        soundfile.read(next(wsj0.rglob(f"{utterance}.wav")))[0][: len(wave)]
        for utterance, wave in zip(UTTERANCES, read, strict=False)
    ]
    gains = [(a @ b) / (b @ b) for a, b in zip(read, raw, strict=True)]
    expected = 10 ** (2 * 1.9857 / 20) * math.sqrt(0.002 / 0.001)
    assert abs(gains[0] / gains[1] / expected - 1) < 1e-3
    (wsj0 / "levels" / "activlev_b.txt").unlink()
    with pytest.raises(DataError, match="no line for 20ga010m"):
        run(wsj0, "other", levels=wsj0 / "levels")


def test_sphere_is_read_and_shorten_explained(wsj0):
    expected = tree(run(wsj0))
    path = next(wsj0.rglob("20ga010m.wav"))
    wave, _ = soundfile.read(path, dtype="int16")
    sphere = path.with_suffix(".wv1")
    soundfile.write(sphere, wave, RATE, format="NIST", subtype="PCM_16")
    path.unlink()
    assert tree(run(wsj0, "sphere")) == expected
    header = sphere.read_bytes()
    coding = b"sample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n"
    header = header[: header.index(b"end_head")] + coding
    sphere.write_bytes(header.ljust(1024, b"\n") + bytes(500))
    with pytest.raises(DataError, match=r"20ga010m.wv1: .*shorten.*sph2pipe -f wav"):
        run(wsj0, "shorten")


@pytest.mark.parametrize(
    ("workers", "spoil", "message"),
    [
        (2, os.unlink, "20ga010m.wav: does not exist, one of 1 .* of 4; looked in"),
        (1, lambda path: path.write_text("<html>"), "20ga010m.wav: cannot be read"),
        (1, lambda p: soundfile.write(p, np.zeros(900), RATE), "is empty, silent or"),
        (1, lambda p: soundfile.write(p, np.ones((9, 2)), RATE), "has 2 channels"),
        (1, lambda path: os.truncate(path, 9000), "20ga010m.wav is truncated: holds"),
    ],
)
def test_a_bad_utterance_is_named_in_one_line(wsj0, workers, spoil, message):
    spoil(next(wsj0.rglob("20ga010m.wav")))
    with pytest.raises(DataError, match=message) as error:
        run(wsj0, workers=workers)
    assert "\n" not in str(error.value)
    assert not list((wsj0 / "out").rglob("*.part"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wsj0/a.wav 1 wsj0/b.wav\n", "line 1: has 3 fields"),
        ("\nwsj0/a.wav one wsj0/b.wav 2\n", "line 2: levels are"),
        ("wsj0/a.wav 1 wsj0/b.wav nan\n", "line 1: levels are"),
        (2 * "wsj0/a.wav 1 wsj0/b.wav -1\n", "line 2: is the mixture of line 1"),
        ("", "lists no mixture"),
    ],
)
def test_a_bad_list_is_named_by_its_line(wsj0, text, message):
    (wsj0 / "lists" / "mix_2_spk_cv.txt").write_text(text)
    with pytest.raises(DataError, match=f"mix_2_spk_cv.txt.*{message}"):
        run(wsj0)
    assert not (wsj0 / "out").exists()


@pytest.mark.parametrize(
    "options", [{"num_spks": 4}, {"sample_rates": [44100]}, {"modes": []}]
)
def test_only_versions_of_the_set_are_made(wsj0, options):
    with pytest.raises(DataError, match=f"{next(iter(options))}: .* expected some of"):
        run(wsj0, **options)
    assert not (wsj0 / "out").exists()


@pytest.mark.parametrize("text", ["01ta0101\n", "01ta0101 x\n", "01ta0101 -1\n"])
def test_a_bad_level_is_named_by_its_line(wsj0, text):
    (wsj0 / "levels.txt").write_text(text)
    with pytest.raises(DataError, match=r"levels.txt, line 1: is '01ta0101"):
        run(wsj0, levels=wsj0 / "levels.txt")


def test_command_line(wsj0):
    command = [sys.executable, "-m", "data_prep.wsj0mix"]
    options = [f"--wsj0={wsj0}/wsj0", f"--lists={wsj0}/lists", f"--out={wsj0}/out"]
    small = ["--sample_rates", "8000", "--modes", "min", "--workers=1"]
    made = subprocess.run([*command, "generate", *options, *small], capture_output=True)
    assert made.returncode == 0 and made.stdout == f"{wsj0}/out/2speakers\n".encode()
    folders = [f"--data_folder={wsj0}/out", f"--save_folder={wsj0}/save"]
    prepared = subprocess.run([*command, "prepare", *folders], capture_output=True)
    assert prepared.returncode == 0 and b"train: " in prepared.stdout
    bad = subprocess.run(
        [*command, "generate", *options[1:], "--wsj0=/nowhere"], capture_output=True
    )
    assert bad.returncode == 1
    assert (
        bad.stderr
        == b"error: /nowhere: holds no folder wsj0; give the folder that does\n"
    )


@pytest.mark.parametrize("place", [".", "wsj0"])
def test_wsj0_may_be_the_folder_one_stands_in(wsj0, monkeypatch, place):
    monkeypatch.chdir(wsj0 / place)
    lists = wsj0 / "lists"
    assert tree(generate(".", lists, wsj0 / "here", workers=1)) == tree(run(wsj0))


def test_all_that_is_missing_is_listed_and_nothing_is_made(wsj0, capsys):
    gone = [next(wsj0.rglob(f"{name}.wav")) for name in ("20ga010m", "445c020q")]
    gone[0].rename(gone[0].with_suffix(".wv2"))
    gone[1].unlink()
    with pytest.raises(DataError, match="one of 2 missing files of 4; .* the discs"):
        run(wsj0)
    assert capsys.readouterr().out.splitlines() == [
        f"missing: wsj0/si_tr_s/20g/20ga010m.wav ({gone[0].with_suffix('.wv2')} is of "
        "the other microphone)",
        "missing: wsj0/si_tr_s/445/445c020q.wav",
    ]
    assert not (wsj0 / "out").exists()


@pytest.mark.parametrize("capitals", [False, True])
def test_discs_as_they_come(wsj0, capitals):
    """The first microphone of `11-1.1/wsj0/si_tr_s/01t/01ta0101.wv1`, in any case."""
    expected = tree(run(wsj0))
    for number, name in enumerate(UTTERANCES):
        path = wsj0 / "wsj0" / "si_tr_s" / name[:3] / f"{name}.wav"
        place = f"11-{number % 2 + 1}.1/wsj0/si_tr_s/{name[:3]}/{name}."
        for suffix, gain in (("wv1", 1), ("wv2", 0.5)):
            wave, _ = soundfile.read(path)
            below = place + suffix
            disc = wsj0 / "csr" / (below.upper() if capitals else below)
            disc.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(disc, gain * wave, RATE, "PCM_16", format="NIST")
    made = generate(wsj0 / "csr", wsj0 / "lists", wsj0 / "discs", workers=1)
    assert tree(made) == expected
