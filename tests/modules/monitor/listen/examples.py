"""Pages of tones to listen to."""

import base64
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import soundfile

from modules.monitor.listen.page import ListenPage, Track

RATE = 8000
NAMES = {"si_snr_i": "SI-SNRi", "sdr": "SDR"}

#: An id that would be heard of if it became markup.
HOSTILE = "../Zoë 'a'\"\\#?</script><script>document.title='hacked'</script>"
HOSTILE += "<img src=x onerror=alert()>"


def data_of(page: Path) -> dict:
    """What the page's script reads."""
    text = page.read_text(encoding="utf-8")
    (found,) = re.findall(r'json" id="data">(.*)</script>', text)
    return json.loads(found)


def heard_of(page: Path, example: int, track: int) -> np.ndarray:
    """The samples [C, T] that a track plays."""
    data = data_of(page)
    place = data["examples"][example]["tracks"][track]["file"]
    parts = []
    while (path := page.parent / data["folder"] / f"{place}-{len(parts)}.js").is_file():
        text = path.read_text(encoding="ascii")
        (encoded,) = re.findall(rf'^take\("{place}-{len(parts)}", "(.*)"\);\n$', text)
        flac = io.BytesIO(base64.b64decode(encoded))
        parts.append(soundfile.read(flac, always_2d=True)[0].T)
    return np.concatenate(parts, axis=1)


def tone(frequency: float, seconds: float = 3.0) -> np.ndarray:
    t_T = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * math.pi * frequency * t_T)).astype(np.float32)


def tracks(seconds: float = 3.0) -> list[Track]:
    low_T, high_T = tone(300, seconds), tone(1200, seconds)
    waves = {"mixture": low_T + high_T, "estimate 1": low_T, "target 1": low_T}
    waves |= {"estimate 2": high_T, "target 2": high_T}
    notes = {"estimate 1": "output 2, +3.0 dB"}
    return [
        Track.of_wave(name, wave_T, RATE, notes.get(name, ""))
        for name, wave_T in waves.items()
    ]


def write_page(folder: Path, number: int, heard: int) -> Path:
    """A page of examples with scores, of which the first `heard` have players.

    Scores are from 0 dB on, in the order of 7 * k; the second last is NaN, and the last
    has none.
    """
    page = ListenPage(folder)
    rows: list[dict] = []
    for k in range(number):
        id_ = HOSTILE if k == 1 else f"example {k:03d}"
        if k < heard:
            page.add(id_, tracks())
        score = 0.1 * (7 * k % number)
        rows.append({"id": id_, "si_snr_i": score, "sdr": 10 - score})
    if number > 3:
        rows[-2]["si_snr_i"], rows[-1]["si_snr_i"] = math.nan, None
    return page.write("a <b>run</b>", rows, "si_snr_i", NAMES)
