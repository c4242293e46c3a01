"""The synthetic corpus: the same every time, disjoint talkers, speech-like sound."""

import filecmp
import os

import numpy as np
import pytest
import soundfile

from data_prep.synthetic import talkers
from data_prep.synthetic.parts import MARKER
from data_prep.synthetic.talkers import Parameters, prepare
from data_prep.synthetic.voices import make_voices, speak
from data_prep.verify.__main__ import main as check
from modules.audio.io import write_wave
from modules.data.manifest import read_manifest
from modules.runtime.cli import run
from modules.runtime.errors import DataError

SMALL = {
    "train_voices": 4,
    "valid_voices": 2,
    "test_voices": 3,
    "utterances_per_voice": 2,
    "seconds": 1.0,
    "valid_mixtures": 3,
    "test_mixtures": 5,
}
RATE = 8000


def generate(folder, **parameters):
    return talkers.generate(folder, Parameters(**parameters))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A small corpus."""
    return generate(tmp_path_factory.mktemp("corpus") / "small", **SMALL)


def files_of(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_two_runs_are_bit_identical_and_seeds_differ(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    again = generate(tmp_path / "again", **SMALL)
    names = files_of(corpus)
    assert names == files_of(again)
    same, different, errors = filecmp.cmpfiles(corpus, again, names, shallow=False)
    assert len(same) == len(names) and not different and not errors
    other = generate(tmp_path / "other", seed=1, **SMALL)
    name = next(name for name in names if "si_tr_s" in name)
    assert (corpus / name).read_bytes() != (other / name).read_bytes()


def test_talkers_of_the_sets_are_disjoint_and_cover_the_range():
    groups = Parameters().split_voices()
    names = [name for voices in groups.values() for name, _ in voices]
    assert len(names) == len(set(names)) >= 16 + 4 + 4
    for voices in groups.values():
        pitches = [voice.pitch for _, voice in voices]
        assert min(pitches) < 115 and max(pitches) > 185


def test_voices_differ_in_pitch_tract_and_rate():
    voices = make_voices(24)
    for field in ("pitch", "tract", "rate"):
        values = [getattr(voice, field) for voice in voices]
        assert len(set(values)) == len(voices)
        assert max(values) > 1.2 * min(values)


def test_corpus_reads_as_wsj0mix(corpus, tmp_path, capsys):
    manifests = prepare(corpus, tmp_path, **SMALL)
    rows = {split: read_manifest(path, 2, RATE) for split, path in manifests.items()}
    assert len(rows["valid"]) == 3 and len(rows["test"]) == 5
    speakers = {}
    for split, split_rows in rows.items():
        pairs = [
            tuple(part[:3] for part in row.id.split("_")[::2]) for row in split_rows
        ]
        assert all(first != second for first, second in pairs)
        speakers[split] = {name for pair in pairs for name in pair}
    assert len(set.union(*speakers.values())) == sum(map(len, speakers.values())) == 9
    utterances = {row.id.split("_")[k] for row in rows["train"] for k in (0, 2)}
    assert len(utterances) == 4 * 2  # each is in some mixture
    assert check(list(manifests.values())) == 0  # mixtures are sums, nothing silent


def test_mixture_is_exactly_the_sum_and_peaks_at_0_9(corpus):
    for path in (corpus / "2speakers/wav8k/min/tt/mix").iterdir():
        mix_T, rate = soundfile.read(path, dtype="int16")
        parts = [path.parents[1] / part / path.name for part in ("s1", "s2")]
        src_ST = np.stack([soundfile.read(part, dtype="int16")[0] for part in parts])
        assert rate == RATE
        assert np.array_equal(mix_T, src_ST.sum(0))
        peak = max(np.abs(mix_T.astype(int)).max(), np.abs(src_ST.astype(int)).max())
        assert abs(peak - 0.9 * 2**15) <= 2
        power_S = np.mean((src_ST / 2**15) ** 2, axis=1)
        named = float(path.stem.split("_")[1])
        assert abs(10 * np.log10(power_S[0] / power_S[1]) - 2 * named) < 0.01


def test_three_speakers_at_16_khz(tmp_path):
    more = {**SMALL, "valid_voices": 3}
    manifests = prepare(tmp_path / "c", tmp_path / "m", 3, 16000, **more)
    for row in read_manifest(manifests["train"], 3, 16000):
        assert len({part[:3] for part in row.id.split("_")[::2]}) == 3


def test_sound_is_like_speech():
    """Bounds about real speech at 8 kHz (kurtosis 10, -17 dB over 3 kHz)."""
    bands = {(0, 500): [], (1000, 2000): [], (3000, 4000): []}
    for number, voice in enumerate(make_voices(12)):
        wave_T = speak(voice, 3.0, RATE, np.random.default_rng(number))
        assert wave_T.shape == (24000,)
        assert abs(np.sqrt(np.mean(wave_T**2)) - 0.05) < 1e-9
        kurtosis = np.mean(wave_T**4) / np.mean(wave_T**2) ** 2
        assert 4 < kurtosis < 30  # 3 is noise; clicks give more
        # The loudest step between samples is no jump: a click would be one.
        steps = np.abs(np.diff(wave_T))
        assert steps.max() < 40 * np.sqrt(np.mean(steps**2))
        power_F = np.abs(np.fft.rfft(wave_T)) ** 2
        hertz_F = np.fft.rfftfreq(len(wave_T), 1 / RATE)
        for (low, high), shares in bands.items():
            inside = (hertz_F >= low) & (hertz_F < high)
            shares.append(power_F[inside].sum() / power_F.sum())
    low, middle, high = (10 * np.log10(np.mean(shares)) for shares in bands.values())
    assert low > -6 and low > middle > high  # the long-term spectrum falls
    assert -24 < high < -10


@pytest.mark.parametrize("place", [0, 3, 7])
def test_pitch_is_that_of_the_voice(place):
    voice = make_voices(8)[place]
    wave_T = speak(voice, 6.0, RATE, np.random.default_rng(5))
    pitches = []
    for start in range(0, len(wave_T) - 800, 400):
        frame = wave_T[start : start + 800]
        if np.mean(frame**2) < np.mean(wave_T**2):
            continue
        spectrum = np.abs(np.fft.rfft(frame * np.hanning(800), 4096)) ** 2
        correlation = np.fft.irfft(spectrum)
        lags = np.arange(RATE // 350, RATE // 60)
        pitches.append(RATE / lags[np.argmax(correlation[lags])])
    assert abs(12 * np.log2(np.median(pitches) / voice.pitch)) < 3


def test_complete_corpus_is_left_alone_and_other_parameters_replace_it(tmp_path):
    folder = generate(tmp_path / "c", **SMALL)
    marker = folder / MARKER
    before = marker.stat().st_ino
    generate(folder, **SMALL)
    assert marker.stat().st_ino == before
    generate(folder, **{**SMALL, "test_mixtures": 4})
    assert len(list((folder / "2speakers/wav8k/min/tt/mix").iterdir())) == 4
    assert os.listdir(tmp_path) == ["c"]


def test_a_link_stays_and_the_corpus_lies_where_it_leads(tmp_path):
    (tmp_path / "disk" / "c").mkdir(parents=True)
    link = tmp_path / "c"
    link.symlink_to(tmp_path / "disk" / "c")
    for count in (3, 4):  # made, then replaced
        generate(link, **{**SMALL, "test_mixtures": count})
        made = tmp_path / "disk/c/2speakers/wav8k/min/tt/mix"
        assert link.is_symlink() and len(list(made.iterdir())) == count
    assert sorted(os.listdir(tmp_path)) == ["c", "disk"]


def test_interrupted_call_leaves_no_corpus_and_the_next_one_succeeds(
    tmp_path, monkeypatch
):
    calls = []

    def die(path, wave_T, sample_rate):
        calls.append(path)
        if len(calls) == 5:
            raise KeyboardInterrupt
        write_wave(path, wave_T, sample_rate)

    monkeypatch.setattr(talkers, "write_wave", die)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "c", **SMALL)
    assert not (tmp_path / "c").exists()
    monkeypatch.undo()
    folder = generate(tmp_path / "c", **SMALL)
    assert (folder / MARKER).is_file() and os.listdir(tmp_path) == ["c"]


def test_wrong_use_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(
        DataError, match="not made by data_prep.synthetic.talkers; give an empty"
    ):
        generate(tmp_path, **SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    with pytest.raises(DataError, match="synthetic mixtures are of mode 'min'"):
        prepare(tmp_path / "c", tmp_path, mode="max")
    with pytest.raises(DataError, match="valid_voices=2 .* allow 1 to 0 mixtures of 3"):
        generate(tmp_path / "c", num_spks=3, valid_voices=2)
    with pytest.raises(
        DataError, match="test_voices=4 .* to 384 mixtures of 2, not 400"
    ):
        generate(tmp_path / "c", test_mixtures=400)
    for name, value in (("num_spks", 1), ("sample_rate", 4000), ("seconds", 0.1)):
        with pytest.raises(DataError, match=f"{name}={value}.*: at least 2 talkers"):
            generate(tmp_path / "c", **{name: value})
    with pytest.raises(TypeError, match="train_voice"):
        generate(tmp_path / "c", train_voice=3)


def test_command_line(tmp_path, capsys):
    """Every parameter is an option; a file in the corpus's place is one line."""
    commands = {"generate": talkers.generate}
    options = [f"--{name}={value}" for name, value in SMALL.items()]
    out = tmp_path / "new"
    assert run("talkers", "", commands, [f"--out={out}", *options, "--seed=1"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert talkers.generate(out, Parameters(**SMALL, seed=1)) == out
    (tmp_path / "file").touch()
    assert run("talkers", "", commands, [f"--out={tmp_path}/file"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/file")
