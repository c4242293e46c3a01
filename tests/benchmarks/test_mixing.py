"""What is compared makes mixtures, of the same talkers, at the levels it should."""

import functools

import numpy as np
import pytest
import soundfile
import torch

from benchmarks.mixing import SpeechBrainMixing, loudness, main
from modules.data.utterances import UtterancePool


@pytest.fixture
def folder(tmp_path):
    """Two utterances of each of three talkers, 16 kHz."""
    rng = np.random.default_rng(0)
    for talker in ("ann", "bob", "cat"):
        for number in range(2):
            path = tmp_path / "talkers" / talker / f"{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.1 * rng.standard_normal(16000), 16000)
    return tmp_path / "talkers"


def test_loudness_of_a_tone_is_that_of_the_standard():
    # BS.1770: a tone of 997 Hz, full scale, in one channel has -3.01 LUFS.
    # pyloudnorm's filters are near the standard's at 48 kHz, less so at 8 kHz.
    for rate, tolerance in ((8000, 0.2), (48000, 0.05)):
        tone = np.sin(2 * np.pi * 997 * np.arange(5 * rate) / rate)
        assert abs(loudness(tone, rate) + 3.01) < tolerance
        assert abs(loudness(0.1 * tone, rate) + 23.01) < tolerance
        gated = np.concatenate([tone, np.zeros(5 * rate)])
        assert abs(loudness(gated, rate) + 3.01) < tolerance + 0.2


@pytest.mark.parametrize("level", ["amplitude", "loudness"])
def test_speechbrains_way_gives_sums_at_its_peak(folder, level):
    mix = SpeechBrainMixing(UtterancePool.scan(folder), level)
    for index in range(5):
        mix_T, src_ST = mix(index)
        assert torch.allclose(mix_T, functools.reduce(torch.add, src_ST), atol=1e-6)
        assert abs(max(mix_T.abs().max(), src_ST.abs().max()) - 0.9) < 1e-5


def test_the_table_has_every_variant_and_ratio(folder, tmp_path, capsys, monkeypatch):
    # It breaks MKL's batched solvers for the rest of the process (torch 2.14).
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    flac = folder / "ann" / "0.flac"  # LibriSpeech's; its copy is a WAV
    soundfile.write(flac, soundfile.read(folder / "ann" / "0.wav")[0], 16000)
    (folder / "ann" / "0.wav").unlink()
    copy = tmp_path / "copy"
    main([f"--folder={folder}", f"--copy={copy}", "--mixtures=2", "--repeats=2"])
    assert len(list(copy.rglob("*.wav"))) == 6
    assert soundfile.info(copy / "ann" / "0.wav").samplerate == 8000
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| ours / SpeechBrain") for line in lines) == 4
    assert sum("(" in line and line.startswith("| ") for line in lines) == 12
