"""Files and folders are separated at their own rate, channels and level, whole.

Shapes: S source, C channel, T sample.
"""

import io
import json
import math
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

import separate as entry
from modules.inference.songs import apply_model
from modules.models.htdemucs import HTDemucs
from modules.models.mossformer2 import MossFormer2
from modules.runtime.errors import HparamsError, UserError
from recipes.separator import Computing, Output, Separator
from tests.modules.monitor.listen.examples import data_of, heard_of
from tests.toy import ToySeparator

RATE = 8000
STEMS = ["drums", "vocals"]


def level_db(wave) -> float:
    return 10 * math.log10(float(np.mean(np.square(np.asarray(wave)))) + 1e-30)


def noise(seconds: float, channels: int = 1, rate: int = RATE, level: float = 0.1):
    """Noise with some rhythm, [T, C]."""
    rng = np.random.default_rng(round(1000 * seconds) + channels)
    samples = round(seconds * rate)
    swell_T1 = 0.6 + 0.4 * np.sin(np.arange(samples) / rate * 7)[:, None]
    return level * swell_T1 * rng.standard_normal((samples, channels))


def exported(folder, network, config):
    """A folder as `export.py` writes it."""
    from safetensors.torch import save_model

    folder.mkdir()
    save_model(network, str(folder / "model.safetensors"))
    kind = type(network)
    config = {
        "format": "sepbrain.model.2",
        "model": f"{kind.__module__}.{kind.__name__}",
        "arguments": config,
        "sample_rate": RATE,
        "weights": "float",
        "adapters": None,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """An exported MossFormer2 for two talkers at 8 kHz."""
    config = {"encoder_channels": 64, "channels": 64, "layers": 1}
    folder = tmp_path_factory.mktemp("models") / "speech"
    return exported(folder, MossFormer2(**config), config)


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """An exported HTDemucs for two stems at 8 kHz."""
    config = {"sources": STEMS, "segment_seconds": [1, 2], "sample_rate": RATE}
    config |= {"channels": 8, "depth": 2, "nfft": 256, "bottom_channels": 0}
    config |= {"t_layers": 1, "t_heads": 1}
    folder = tmp_path_factory.mktemp("models") / "music"
    return exported(folder, HTDemucs(**config), config)


def run(model, *inputs, out, status=0, **options):
    arguments = [f"--{name}={value}" for name, value in options.items()]
    given = [str(model), *map(str, inputs), f"--out={out}", "--device=cpu", *arguments]
    assert entry.main(given) == status


def read(path):
    return soundfile.read(path, always_2d=True)


@pytest.mark.parametrize(
    "channels, rate", [(1, RATE), (2, RATE), (1, 16000), (3, 44100)]
)
def test_speech_keeps_rate_length_and_channels(speech, tmp_path, channels, rate):
    wave_TC = noise(1.03, channels, rate)
    soundfile.write(tmp_path / "a.wav", wave_TC, rate, "FLOAT")
    run(speech, tmp_path / "a.wav", out=tmp_path / "out")
    for stem in ("s1", "s2"):
        est_TC, est_rate = read(tmp_path / "out" / "a" / f"{stem}.wav")
        assert (est_TC.shape, est_rate) == (wave_TC.shape, rate)
        assert soundfile.info(tmp_path / "out/a" / f"{stem}.wav").subtype == "FLOAT"
    run(speech, tmp_path / "a.wav", out=tmp_path / "mean", channels="mean")
    assert read(tmp_path / "mean/a/s1.wav")[0].shape == (len(wave_TC), 1)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [RATE, 44100])
def test_music_is_stereo(music, tmp_path, channels, rate):
    wave_TC = noise(1.7, channels, rate)
    soundfile.write(tmp_path / "a.wav", wave_TC, rate, "FLOAT")
    run(music, tmp_path / "a.wav", out=tmp_path / "out")
    for stem in STEMS:
        est_TC, est_rate = read(tmp_path / "out" / "a" / f"{stem}.wav")
        assert (est_TC.shape, est_rate) == ((len(wave_TC), 2), rate)


def test_at_the_models_rate_the_samples_are_the_networks(speech, music, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(1.9, 2), RATE, "FLOAT")
    wave_CT = torch.from_numpy(read(tmp_path / "a.wav")[0].T).float()
    run(speech, tmp_path / "a.wav", out=tmp_path / "speech")
    separator = Separator.load(speech, device="cpu")
    with torch.no_grad():
        whole_ST = separator.network(wave_CT[:1])[0]
    est_T = read(tmp_path / "speech/a/s2.wav")[0][:, 0]
    np.testing.assert_allclose(est_T, whole_ST[1], atol=1e-6)
    run(music, tmp_path / "a.wav", out=tmp_path / "music")
    network = Separator.load(music, device="cpu").network
    whole_SCT = apply_model(network, wave_CT[None], shifts=0, normalize=True)[0]
    for index, stem in enumerate(STEMS):
        est_TC, _ = read(tmp_path / "music" / "a" / f"{stem}.wav")
        assert level_db(est_TC - whole_SCT[index].T.numpy()) < -120


def test_a_long_file_equals_the_whole(tmp_path):
    """Through a network of short memory, resampling included, and in any reads."""
    torch.manual_seed(0)
    computing = Computing("cpu", chunk_seconds=1, segments_per_call=3)
    separator = Separator(ToySeparator(), RATE, ["a", "b"], computing)
    long_CT = torch.from_numpy(noise(31.3, 1, 16000).T).float()
    chunked = separator.separate(long_CT, 16000)
    separator.computing = replace(computing, chunk_seconds=10**6)
    whole = separator.separate(long_CT, 16000)
    for name, wave_CT in whole.items():
        difference = level_db(chunked[name] - wave_CT) - level_db(wave_CT)
        assert difference < -60, difference


def test_a_long_song_equals_the_whole_at_another_rate(music, tmp_path):
    separator = Separator.load(music, device="cpu", segments_per_call=5)
    song_CT = torch.from_numpy(noise(9.1, 2, 44100).T).float()
    soundfile.write(tmp_path / "a.wav", song_CT.T.numpy(), 44100, "FLOAT")
    paths = separator.separate_file(tmp_path / "a.wav", tmp_path / "out")
    array = separator.separate(song_CT, 44100)
    for name in STEMS:
        np.testing.assert_array_equal(read(paths[name])[0].T, array[name])
    separator.computing = Computing("cpu", segments_per_call=1)
    for name, wave_CT in separator.separate(song_CT, 44100).items():
        assert level_db(wave_CT - array[name]) < level_db(wave_CT) - 100


def test_rest_and_stems_sum_to_the_mixture(music, speech, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(2.3, 1, 16000), 16000, "FLOAT")
    mixture_TC = read(tmp_path / "a.wav")[0]
    options = [f"--out={tmp_path / 'out'}", "--rest", "--device=cpu"]
    name = "--name={name}_{stem}"
    assert not entry.main(
        [str(music), str(tmp_path / "a.wav"), *options, name, "--stems=vocals"]
    )
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["a_rest.wav", "a_vocals.wav"]
    parts = [read(tmp_path / "out" / name)[0] for name in written]
    np.testing.assert_allclose(sum(parts), mixture_TC.repeat(2, 1), atol=1e-6)
    assert not entry.main([str(speech), str(tmp_path / "a.wav"), *options])
    parts = [read(tmp_path / "out/a" / f"{x}.wav")[0] for x in ("s1", "s2", "rest")]
    np.testing.assert_allclose(sum(parts), mixture_TC, atol=1e-6)


def test_folders_keep_their_tree_and_one_bad_file_stops_no_other(
    speech, tmp_path, capsys
):
    songs = tmp_path / "songs"
    (songs / "live").mkdir(parents=True)
    for name in ("a.flac", "b.ogg", "live/c.mp3", "live/d.WAV", "live/e.aiff"):
        soundfile.write(songs / name, noise(0.6), RATE)
    whole = (songs / "live" / "d.WAV").read_bytes()
    (songs / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (songs / "text.wav").write_text("no audio")
    (songs / "notes.txt").write_text("not listed")
    (songs / "._a.flac").write_text("hidden")
    soundfile.write(songs / "empty.wav", np.zeros((0, 1)), RATE)
    out = songs / "out"  # inside: a second run must not take it for input
    given = [str(speech), str(songs), str(tmp_path / "gone.wav"), f"--out={out}"]
    assert entry.main([*given, "--device=cpu", "--json"]) == 1
    summary = json.loads(capsys.readouterr().out)
    failed = {entry["input"]: entry["error"] for entry in summary["failed"]}
    names = ["cut.wav", "empty.wav", "text.wav"]
    assert set(failed) == {*(str(songs / n) for n in names), str(tmp_path / "gone.wav")}
    assert "is truncated: holds" in failed[str(songs / "cut.wav")]
    assert failed[str(tmp_path / "gone.wav")].endswith("gone.wav: does not exist")
    assert len(summary["separated"]) == 5 and not summary["skipped"]
    entries = summary["separated"]
    assert all(x["seconds"] > 0.5 and x["real_time_factor"] > 0 for x in entries)
    for name in ("a", "b", "live/c", "live/d", "live/e"):
        inside = sorted(path.name for path in (out / name).iterdir())
        assert inside == ["s1.wav", "s2.wav"]

    # The same command does only what is missing.
    (out / "live" / "c" / "s2.wav").unlink()
    before = (out / "a" / "s1.wav").stat().st_mtime_ns
    assert entry.main([*given, "--device=cpu", "--json"]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert [x["input"] for x in summary["separated"]] == [str(songs / "live/c.mp3")]
    assert len(summary["skipped"]) == 4
    assert (out / "a" / "s1.wav").stat().st_mtime_ns == before


def test_a_file_that_fails_half_way_leaves_nothing(speech, tmp_path, capsys):
    wave_TC = noise(20.0)
    wave_TC[-5] = np.nan
    soundfile.write(tmp_path / "a.wav", wave_TC, RATE, "FLOAT")
    run(speech, tmp_path / "a.wav", out=tmp_path / "out", status=1, chunk_seconds=2)
    assert not list((tmp_path / "out").rglob("*.*"))


class Loud(torch.nn.Module):
    """Two estimates, four times and half the mixture."""

    def forward(self, mix_BT):
        return torch.stack([4 * mix_BT, mix_BT / 2], dim=1)


@pytest.mark.parametrize("format, subtype", [("wav", "pcm16"), ("flac", None)])
def test_clipping(tmp_path, format, subtype):
    separator = Separator(Loud(), RATE, ["loud", "soft"], Computing("cpu"))
    mix_T1 = 0.5 * np.sin(np.arange(12000) / 20)[:, None]
    soundfile.write(tmp_path / "a.wav", mix_T1, RATE, "FLOAT")

    def written(clip):
        output = Output(format=format, subtype=subtype, clip=clip)
        paths = output.paths(tmp_path / clip, "a", separator.sources)
        lowered = separator.write_stems(tmp_path / "a.wav", paths, output)
        return read(paths["loud"])[0], read(paths["soft"])[0], lowered

    loud_T1, soft_T1, lowered = written("scale")
    assert lowered == pytest.approx(20 * math.log10(2), abs=1e-3)
    np.testing.assert_allclose(loud_T1, 2 * mix_T1, atol=1e-4)
    np.testing.assert_allclose(soft_T1, mix_T1 / 4, atol=1e-4)
    loud_T1, soft_T1, lowered = written("clamp")
    assert lowered == 0
    np.testing.assert_allclose(loud_T1, np.clip(4 * mix_T1, -1, 1), atol=1e-4)
    np.testing.assert_allclose(soft_T1, mix_T1 / 2, atol=1e-4)
    with pytest.raises(UserError, match="2 times full scale clip in PCM.*--clip=scale"):
        written("error")
    assert not list((tmp_path / "error").rglob("*.*"))


def test_the_scale_is_said_in_one_line(speech, tmp_path, caplog):
    soundfile.write(tmp_path / "a.wav", noise(1.0, level=9.0), RATE, "FLOAT")
    with caplog.at_level("INFO"):
        run(speech, tmp_path / "a.wav", out=tmp_path / "out", subtype="pcm16")
    lines = [line for line in caplog.messages if "lowered by" in line]
    found = [read(tmp_path / "out/a" / f"{x}.wav")[0] for x in ("s1", "s2")]
    peak = max(np.abs(wave).max() for wave in found)
    if lines:
        assert len(lines) == 1 and " dB" in lines[0] and peak > 0.999
    else:
        assert peak < 1


@pytest.mark.parametrize("format, subtype", [("ogg", None), ("flac", "pcm16")])
def test_formats(speech, tmp_path, format, subtype):
    soundfile.write(tmp_path / "a.wav", noise(1.0, 2), RATE)
    options = {"subtype": subtype} if subtype else {}
    run(speech, tmp_path / "a.wav", out=tmp_path, format=format, **options)
    info = soundfile.info(tmp_path / "a" / f"s1.{format}")
    assert (info.format.lower(), info.channels) == (format, 2)
    run(
        speech,
        tmp_path / "a.wav",
        out=tmp_path,
        format=format,
        subtype="float",
        status=1,
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"stems": "guitar"}, "the model has no guitar; it has s1, s2"),
        ({"name": "{stem}"}, "must hold {name} and {stem}"),
        ({"device": "xyz"}, "no such device"),
        ({"overlap": 1}, "overlap=1.0: must be 0.001 to 0.99"),
        ({"shifts": 2}, "--shifts: is for music"),
        ({"sample_rate": 16000}, "works at 8000 Hz"),
    ],
)
def test_options_that_cannot_be(speech, tmp_path, capsys, options, message):
    soundfile.write(tmp_path / "a.wav", noise(0.2), RATE)
    arguments = [f"--{name}={value}" for name, value in options.items()]
    given = [str(speech), str(tmp_path / "a.wav"), f"--out={tmp_path}", *arguments]
    assert entry.main(given) == 1
    assert message in capsys.readouterr().err


def test_two_inputs_for_one_output_are_refused(speech, tmp_path, capsys):
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, noise(0.2), RATE)
    run(speech, tmp_path, out=tmp_path / "out", status=1)
    assert "would both be written to" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    run(speech, tmp_path / "none", out=tmp_path / "out", status=1)
    assert "holds no audio" in capsys.readouterr().err


def test_an_out_around_the_inputs(speech, tmp_path, capsys, monkeypatch):
    (tmp_path / "songs").mkdir()
    soundfile.write(tmp_path / "songs" / "a.wav", noise(0.2), RATE)
    monkeypatch.chdir(tmp_path)
    run(speech, "songs", out=".")
    (tmp_path / "a" / "s1.wav").unlink()
    capsys.readouterr()
    run(speech, "songs", out=".")  # its own stems are no inputs
    assert "1 files separated" in capsys.readouterr().out
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.wav"))
    assert found == ["a/s1.wav", "a/s2.wav", "songs/a.wav"]
    run(speech, ".", out="songs/stems", status=0)
    assert not (tmp_path / "songs" / "stems" / "songs" / "stems").exists()


def test_an_out_whose_stems_would_be_inputs_is_refused(
    speech, tmp_path, capsys, monkeypatch
):
    (tmp_path / "songs" / "songs").mkdir(parents=True)
    soundfile.write(tmp_path / "songs" / "a.wav", noise(0.2), RATE)
    monkeypatch.chdir(tmp_path)

    def refused(*inputs: str, out: str) -> str:
        run(speech, *inputs, out=out, status=1)
        assert len(list(tmp_path.rglob("*.wav"))) == wavs
        return capsys.readouterr().err

    wavs = 1
    error = refused("songs", out="songs")
    assert "--out=songs: holds inputs, and songs/a/s1.wav would be written" in error
    assert "such as --out=songs/stems" in error
    assert ".: holds no audio outside of --out=songs" in refused(".", out="songs")
    soundfile.write(tmp_path / "songs" / "songs" / "b.wav", noise(0.2), RATE)
    wavs = 2
    assert "--out=.: holds inputs, and songs/b/s" in refused("songs", out=".")
    # Nor may a stem take the place of an input.
    (tmp_path / "a").mkdir()
    soundfile.write(tmp_path / "a" / "s1.wav", noise(0.2), RATE)
    wavs = 3
    error = refused("songs/a.wav", "a/s1.wav", out=".")
    assert "would be written among them" in error


def test_files_of_one_name_are_told_apart_by_their_folders(speech, tmp_path):
    places = [tmp_path / name / "mixture.wav" for name in ("a", "b")]
    for place in places:
        place.parent.mkdir()
        soundfile.write(place, noise(0.2), RATE)
    run(speech, *places, out=tmp_path / "out")
    for name in ("a", "b"):
        assert (tmp_path / "out" / name / "mixture" / "s1.wav").is_file()


def test_a_comma_in_a_name_is_part_of_it(speech, tmp_path):
    soundfile.write(tmp_path / "a,b.wav", noise(0.2), RATE)
    run(speech, tmp_path / "a,b.wav", out=tmp_path / "out")
    assert (tmp_path / "out/a,b/s1.wav").is_file()


def test_more_channels_than_the_model_takes(music, tmp_path):
    separator = Separator.load(music, device="cpu")
    wave_CT = torch.randn(6, 900)
    with pytest.raises(UserError, match="has 6 channels, the model takes 2; use --cha"):
        separator.separate(wave_CT, RATE)
    assert separator.separate(wave_CT, RATE, channels="mean")["drums"].shape == (2, 900)
    for bad in (torch.zeros(2, 0), torch.zeros(5)):
        with pytest.raises(UserError, match="audio must be"):
            separator.separate(bad, RATE)


class Swapping(torch.nn.Module):
    """The low and the high half of the spectrum, in an order that keeps changing."""

    calls = 0

    def forward(self, mix_BT):
        spectrum = torch.fft.rfft(mix_BT)
        low = torch.arange(spectrum.shape[-1]) < spectrum.shape[-1] // 2
        size = mix_BT.shape[-1]
        est_BST = torch.stack(
            [torch.fft.irfft(spectrum * x, n=size) for x in (low, ~low)], dim=1
        )
        for example in range(len(est_BST)):
            self.calls += 1
            if self.calls % 3 == 0 or self.calls % 7 == 0:
                est_BST[example] = est_BST[example].flip(0)
        return est_BST


def test_talkers_keep_their_streams_across_chunks_and_channels():
    computing = Computing("cpu", chunk_seconds=0.5, segments_per_call=3)
    separator = Separator(Swapping(), RATE, ["a", "b"], computing)
    time_T = torch.arange(10 * RATE)
    low_T, high_T = 0.2 * torch.sin(0.3 * time_T), 0.1 * torch.sin(2.5 * time_T)
    mix_CT = torch.stack([low_T + high_T, 0.5 * low_T + 2 * high_T])
    parts = separator.separate(mix_CT, RATE)
    for channel, (low, high) in enumerate([(1, 1), (0.5, 2)]):
        for name, wave_T in (("a", low * low_T), ("b", high * high_T)):
            error = level_db(parts[name][channel] - wave_T) - level_db(wave_T)
            assert error < -20, (name, channel, error)


def test_a_model_of_one_channel_separates_each():
    class Halves(torch.nn.Module):
        segment, sources, sample_rate, audio_channels = 0.5, ["a", "b"], RATE, 1

        def forward(self, mix_BCT):
            assert mix_BCT.shape[1] == 1
            return torch.stack([0.25 * mix_BCT, 0.75 * mix_BCT], dim=1)

    wave_CT = torch.from_numpy(noise(2.2, 3).T).float()
    wave_CT -= wave_CT.mean(-1, keepdim=True)  # as songs are normalised
    parts = Separator(Halves(), RATE, ["a", "b"], Computing("cpu")).separate(
        wave_CT, RATE
    )
    torch.testing.assert_close(parts["b"], 0.75 * wave_CT, atol=1e-6, rtol=0)


@pytest.mark.parametrize("song_level", [True, False])
def test_a_network_may_take_songs_as_they_are(song_level):
    class Loud(torch.nn.Module):
        segment, sources, sample_rate, audio_channels = 0.5, ["a"], RATE, 2

        def forward(self, mix_BCT):
            return mix_BCT.abs().unsqueeze(1)

    network = Loud()
    network.song_level = song_level
    wave_CT = 3 + torch.from_numpy(noise(1.0, 2).T).float()
    separator = Separator(network, RATE, ["a"], Computing("cpu"))
    (est_CT,) = separator.separate(wave_CT, RATE).values()
    assert torch.allclose(est_CT, wave_CT.abs(), atol=1e-5) != song_level


def test_bf16_is_close_and_float(speech):
    wave_CT = torch.from_numpy(noise(1.0).T).float()
    exact = Separator.load(speech, device="cpu").separate(wave_CT, RATE)
    rough = Separator.load(speech, device="cpu", precision="bf16")
    for name, wave in rough.separate(wave_CT, RATE).items():
        assert wave.dtype == torch.float32 and not torch.equal(wave, exact[name])
        assert level_db(wave - exact[name]) < level_db(exact[name]) - 20


def test_names_of_stems_are_no_paths():
    path = Output().paths("o", "n", ["../x"])["../x"]
    assert path.parent.as_posix() == "o/n" and path.name.startswith("_x")
    for name in ("{name}", "{stem}"):
        with pytest.raises(HparamsError):
            Output(name=name)


def test_the_page_plays_each_mixture_and_its_stems(music, tmp_path):
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        folder = tmp_path / "songs" / name
        folder.mkdir(parents=True)
        soundfile.write(folder / "song.wav", noise(seconds, 2, 11025), 11025)
    given = [str(music), str(tmp_path / "songs"), f"--out={tmp_path / 'out'}", "--page"]
    for _ in range(2):  # the second time all stems are there
        assert entry.main([*given, "--device=cpu"]) == 0
        page = tmp_path / "out" / "listen.html"
        first, second = data_of(page)["examples"]
        assert first["id"] == str(tmp_path / "songs" / "a" / "song.wav")
        assert [track["name"] for track in first["tracks"]] == ["mixture", *STEMS]
        assert [track["seconds"] for track in second["tracks"]] == 3 * [2.0]
        written_TC, _ = soundfile.read(tmp_path / "out" / "b" / "song" / "drums.wav")
        np.testing.assert_allclose(heard_of(page, 1, 1).T, written_TC, atol=1e-4)


def bag_of(folder, places, weights=None, name="bag.yaml"):
    """A list of models as a user writes it."""
    content = {"models": [str(place) for place in places]}
    (folder / name).write_text(
        json.dumps({**content, **({"weights": weights} if weights else {})})
    )
    return folder / name


def second_of(model, folder):
    """The same model with other weights."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    state = load_file(folder / "model.safetensors")
    changed = {k: v if "freq" in k else 0.9 * v for k, v in state.items()}
    save_file(changed, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["music", "speech"])
def test_models_are_averaged_by_their_weights(kind, request, tmp_path):
    model = request.getfixturevalue(kind)
    other = second_of(model, tmp_path / "other")
    wave_CT = torch.from_numpy(noise(2.3, 2).T).float()
    one, two = (
        Separator.load(place, device="cpu").separate(wave_CT, RATE)
        for place in (model, other)
    )
    bag = bag_of(tmp_path, [model, "other"], [[1, 0], [3, 2]], "mine.json")
    both = Separator.load(bag, device="cpu").separate(wave_CT, RATE)
    first, second = both
    mixed = 0.25 * one[first] + 0.75 * two[first]
    torch.testing.assert_close(both[first], mixed, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(both[second], two[second], atol=1e-6, rtol=1e-4)


def test_a_model_without_weight_does_not_run(music, tmp_path):
    bag = bag_of(tmp_path, [music, second_of(music, tmp_path / "b")], [[1, 0], [0, 1]])
    separator = Separator.load(bag, device="cpu")
    called = []
    for number, network in enumerate(separator.network.models):
        network.register_forward_hook(lambda *_, number=number: called.append(number))
    separator.separate(torch.randn(2, 5000), RATE, stems=["vocals"])
    assert set(called) == {1}


def test_lists_that_do_not_fit(music, speech, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", noise(0.2), RATE)
    for places, weights, message in (
        ([music, speech], None, "its models differ: 8000 Hz .*drums"),
        ([music, music], [[1], [1]], "weights: needs a number for each of drums, voc"),
        ([music, "gone"], None, "lacks its model gone"),
    ):
        bag = bag_of(tmp_path, places, weights)
        run(bag, tmp_path / "a.wav", out=tmp_path / "out", status=1)
        assert re.search(message, capsys.readouterr().err)


def test_shifts_are_those_of_apply_model(music, tmp_path):
    wave_CT = torch.from_numpy(noise(3.3, 2).T).float()
    bag = bag_of(tmp_path, [music, second_of(music, tmp_path / "b")])
    for model in (music, bag):
        options = {"shifts": 2, "overlap": 0.4, "seed": 7}
        separator = Separator.load(model, device="cpu", **options)
        parts = separator.separate(wave_CT, RATE)
        whole_SCT = apply_model(
            separator.network, wave_CT[None], normalize=True, **options
        )[0]
        for name, est_CT in zip(STEMS, whole_SCT, strict=True):
            assert level_db(parts[name] - est_CT) < level_db(est_CT) - 100
        once = replace(separator.computing, shifts=0)
        separator.computing = once
        assert not torch.allclose(separator.separate(wave_CT, RATE)["drums"], est_CT)


def test_augmentation_makes_estimates_symmetric(music, speech):
    wave_CT = torch.from_numpy(noise(1.9, 2).T).float()
    song = Separator.load(music, device="cpu", tta=True)
    parts = song.separate(wave_CT, RATE)
    swapped = song.separate(wave_CT.flip(0), RATE)
    negative = song.separate(-wave_CT, RATE)
    plain = Separator.load(music, device="cpu").separate(wave_CT, RATE)
    for name in STEMS:
        torch.testing.assert_close(
            swapped[name].flip(0), parts[name], atol=1e-6, rtol=0
        )
        torch.testing.assert_close(-negative[name], parts[name], atol=1e-6, rtol=0)
        assert level_db(plain[name] - parts[name]) > level_db(parts[name]) - 60
    talkers = Separator.load(speech, device="cpu", tta=True)
    there, back = (talkers.separate(x, RATE) for x in (wave_CT[:1], -wave_CT[:1]))
    for name in ("s1", "s2"):
        torch.testing.assert_close(-back[name], there[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_wav_from_standard_input(speech, tmp_path, monkeypatch, capsys, streamed):
    wave_T1 = noise(1.2)
    soundfile.write(tmp_path / "a.wav", wave_T1, RATE, "FLOAT")
    content = bytearray((tmp_path / "a.wav").read_bytes())
    if streamed:  # a program that writes into a pipe does not know the length
        place = content.index(b"data") + 4
        content[4:8] = content[place : place + 4] = b"\xff" * 4
    run(speech, tmp_path / "a.wav", out=tmp_path)
    for _ in range(2):  # and again, where the files are there: it may be another one
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        run(speech, "-", out=tmp_path / "out")
        assert "1 files separated" in capsys.readouterr().out
    for stem in ("s1", "s2"):
        expected_TC, _ = read(tmp_path / "a" / f"{stem}.wav")
        np.testing.assert_array_equal(
            read(tmp_path / "out/stdin" / f"{stem}.wav")[0], expected_TC
        )


def test_standard_input_without_audio(speech, tmp_path, monkeypatch, capsys):
    for content in (b"", b"no audio"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        given = [
            str(speech),
            "-",
            f"--out={tmp_path / 'out'}",
            "--device=cpu",
            "--json",
        ]
        assert entry.main(given) == 1
        summary = json.loads(capsys.readouterr().out)
        (failed,) = summary["failed"]
        assert failed["input"] == "-" and failed["error"].startswith("-: cannot be re")
