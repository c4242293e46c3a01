"""The files of a page to listen to: whole, at one level, and safe."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from modules.monitor.listen import pictures
from modules.monitor.listen.page import ListenPage, Track
from modules.monitor.listen.pictures import Sketch
from modules.runtime.errors import DataError
from tests.modules.monitor.listen.examples import (
    HOSTILE,
    RATE,
    data_of,
    heard_of,
    tone,
    write_page,
)


def files_of(page: Path) -> set[str]:
    found = page.parent.rglob("*")
    return {str(path.relative_to(page.parent)) for path in found if path.is_file()}


def test_what_the_page_names_is_there_and_nothing_else(tmp_path):
    page = write_page(tmp_path, number=5, heard=2)
    data = data_of(page)
    assert [len(e["tracks"]) for e in data["examples"]] == [5, 5, 0, 0, 0]
    named = {
        f"{data['folder']}/{track['file']}{kind}"
        for example in data["examples"]
        for track in example["tracks"]
        for kind in (".png", "-0.js")
    }
    assert files_of(page) == {*named, "listen.html"}
    scores = [example["scores"]["si_snr_i"] for example in data["examples"]]
    assert scores[-2:] == ["nan", None] and data["sortBy"] == "si_snr_i"


def test_what_strangers_wrote_is_data_and_no_markup(tmp_path):
    page = write_page(tmp_path, number=2, heard=2)
    assert data_of(page)["examples"][1]["id"] == HOSTILE
    text = page.read_text(encoding="utf-8")
    assert "hacked" in text and HOSTILE not in text
    assert text.count("</script>") == 2, "of the data and of the program"
    assert "<b>" not in text
    assert all(re.fullmatch(r"[\w./+-]+", name) for name in files_of(page))


def test_a_rerun_replaces_the_page_and_a_failure_leaves_it(tmp_path, monkeypatch):
    first = write_page(tmp_path, number=2, heard=1)
    before, text = files_of(first), first.read_text(encoding="utf-8")
    broken = ListenPage(tmp_path)
    broken.add("half", [Track.of_wave("mixture", tone(300), RATE)])
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError(28)))
        broken.write("broken")
    assert first.read_text(encoding="utf-8") == text and before <= files_of(first)
    again = write_page(tmp_path, number=2, heard=2)
    assert len(files_of(again)) == 1 + 2 * 10
    assert files_of(again) & before == {"listen.html"}, "the rest of the old is gone"


def test_tracks_keep_their_levels_unless_one_would_clip(tmp_path):
    page = ListenPage(tmp_path)
    quiet_CT = np.stack([tone(300), -tone(500)])
    page.add("quiet", [Track.of_wave("a", quiet_CT, RATE)])
    loud = [Track.of_wave("a", 0.5 * tone(300), RATE)]
    page.add("loud", [*loud, Track.of_wave("b", 10 * tone(500), RATE)], note="Odd.")
    written = page.write("levels")
    quiet, loud = data_of(written)["examples"]
    np.testing.assert_allclose(heard_of(written, 0, 0), quiet_CT, atol=1e-4)
    lowered_T = heard_of(written, 1, 0)[0], heard_of(written, 1, 1)[0]
    np.testing.assert_allclose(lowered_T[0], 0.5 / 3 * tone(300), atol=1e-4)
    np.testing.assert_allclose(lowered_T[1], 10 / 3 * tone(500), atol=1e-4)
    assert not quiet["note"]
    assert loud["note"] == "Odd. All tracks are 9.5 dB lower here."


def test_a_file_is_heard_as_an_array_is(tmp_path):
    wave_TC = np.stack([tone(300, 20.0), tone(900, 20.0)], axis=1)
    soundfile.write(tmp_path / "song.wav", wave_TC, RATE, subtype="FLOAT")
    page = ListenPage(tmp_path / "page")
    page.add("array", [Track.of_wave("song", wave_TC.T, RATE)])
    page.add("file", [Track.of_file("song", tmp_path / "song.wav")])
    written = page.write("both")
    array_CT, file_CT = heard_of(written, 0, 0), heard_of(written, 1, 0)
    np.testing.assert_array_equal(array_CT, file_CT)
    np.testing.assert_allclose(file_CT, wave_TC.T, atol=1e-4)
    pictures = [path.read_bytes() for path in written.parent.rglob("*.png")]
    assert len(pictures) == 2 and pictures[0] == pictures[1]


def test_an_empty_track_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match="mix 1: mixture holds no samples"):
        track = Track.of_wave("mixture", np.zeros(0, np.float32), RATE)
        ListenPage(tmp_path).add("mix 1", [track])


@pytest.mark.parametrize("frames", [1, 100, 24000, 480000])
def test_a_picture_shows_where_sound_is(frames):
    """A tone in the first half: in its row of mel, and as loud as the waveform says."""
    wave_T = tone(1000, frames / RATE)
    wave_T[len(wave_T) // 2 :] = 0
    sketch = Sketch(frames, RATE)
    for part_T in np.array_split(wave_T, 7):
        sketch.add(part_T[:, None])
    power = sketch.finish()
    image_RL = np.asarray(Image.open(io.BytesIO(sketch.png(0.6, power))))
    wave_RL, level_RL = np.split(image_RL, [pictures.WAVE_ROWS])
    assert image_RL.shape[1] == min(frames, pictures.COLUMNS)
    if frames < pictures.COLUMNS:
        return
    half = image_RL.shape[1] // 2
    mel = np.log1p(1000 / 700) / np.log1p(RATE / 2 / 700)
    loudest = pictures.ROWS - 1 - level_RL[:, 5 : half - 20].mean(1).argmax()
    assert abs(loudest - mel * pictures.ROWS) < 3
    assert not level_RL[:, half + 20 :].any(), "silence is dark"
    heights_L = (wave_RL == pictures.LEVELS).sum(0)
    assert abs(heights_L[5 : half - 5].max() - pictures.WAVE_ROWS / 2) <= 2
    assert (heights_L[half + 5 :] <= 2).all(), "a line"


def test_samples_that_are_not_finite_are_silence(tmp_path):
    wave_T = tone(300)
    wave_T[100:200] = np.nan
    page = ListenPage(tmp_path)
    page.add("odd", [Track.of_wave("estimate", wave_T, RATE)])
    heard_T = heard_of(page.write("odd"), 0, 0)[0]
    assert not heard_T[100:200].any() and heard_T[300:].any()
