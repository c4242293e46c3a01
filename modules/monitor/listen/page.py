"""A static page to hear and see what a model made: `listen.html`, for any browser.

    page = ListenPage(folder)
    page.add("mix 1", [Track.of_wave("mixture", mix_T, 8000), ...])
    page.write("demo", rows=[{"id": "mix 1", "si_snr_i": 5.8}], sort_by="si_snr_i")

It needs no server, and the folder can be copied. Pictures and audio lie in `listen/`,
audio as FLAC inside of scripts: a page that is opened from a disk may load no other
data. The page that was there stays whole until the new one replaces it.

Shapes: C channel, T sample, t sample of a block.
"""

import io
import json
import math
import re
import secrets
import shutil
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from modules.audio.io import Header, open_audio
from modules.monitor.listen.pictures import Sketch, finite
from modules.runtime.errors import DataError
from modules.runtime.files import write_text

PART_SECONDS = 5  # of a track in a file
RATES = 8000, 96000  # that every browser plays; it resamples others

Row = Mapping[str, str | float | None]


class Track(NamedTuple):
    """A player of an example: its name, how to read it, and a note beside the name."""

    name: str
    header: Header
    parts: Callable[[], Iterator[np.ndarray]]  # [t, C], of PART_SECONDS
    note: str = ""

    @classmethod
    def of_wave(
        cls, name: str, wave: np.ndarray, sample_rate: int, note: str = ""
    ) -> "Track":
        """Make a track of samples [T] or [C, T], full scale at 1."""
        wave_TC = np.atleast_2d(wave).T
        header = Header(sample_rate, wave_TC.shape[1], len(wave_TC))
        size = PART_SECONDS * sample_rate
        starts = range(0, len(wave_TC), size)
        return cls(name, header, lambda: (wave_TC[i : i + size] for i in starts), note)

    @classmethod
    def of_file(cls, name: str, path: str | Path) -> "Track":
        """Make a track of a file; it is read twice, in constant memory."""
        with open_audio(path) as file:
            header = file.header
        size = PART_SECONDS * header.sample_rate

        def parts() -> Iterator[np.ndarray]:
            with open_audio(path) as file:
                for start in range(0, header.frames, size):
                    yield file.read(start, min(size, header.frames - start))

        return cls(name, header, parts)


class ListenPage:
    """Writes `listen.html` and `listen/` in a folder, example by example."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "listen.html"
        # A new folder for each page, so that the old one keeps its audio till the end.
        self._files = self.path.with_suffix("") / secrets.token_hex(4)
        self._examples: dict[str, dict[str, Any]] = {}

    def add(self, id_: str, tracks: Sequence[Track], note: str = "") -> None:
        """Write audio and pictures of an example; its id must be new.

        Tracks are shown in their order, two in a row, the first alone if their number
        is odd. Where one exceeds full scale all are lowered together, and the note says
        so. A DataError names a track without samples, or a file that cannot be read or
        written.
        """
        title = _place(len(self._examples) + 1, id_)
        folder = self._files / title
        sketches = []
        for track in tracks:
            if not track.header.frames:
                raise DataError(f"{id_}: {track.name} holds no samples")
            sketches.append(Sketch(track.header.frames, track.header.sample_rate))
            for wave_tC in track.parts():
                sketches[-1].add(wave_tC)
        power = max((sketch.finish() for sketch in sketches), default=0.0)
        peak = max((sketch.peak for sketch in sketches), default=0.0)
        if peak > 1:
            lowered = f"All tracks are {20 * math.log10(peak):.1f} dB lower here."
            note = f"{note} {lowered}".strip()
        shown: list[dict] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for track, sketch in zip(tracks, sketches, strict=True):
                place = f"{title}/{_place(len(shown), track.name)}"
                (self._files / f"{place}.png").write_bytes(sketch.png(peak, power))
                self._write_audio(track, place, loud=max(peak, 1.0))
                shown.append(_description(track, place))
        except OSError as error:
            reason = error.strerror
            raise DataError(f"{folder}: cannot be written ({reason})") from error
        self._examples[id_] = {"note": note, "tracks": shown}

    def _write_audio(self, track: Track, place: str, loud: float) -> None:
        """Write a track, divided by `loud`, as scripts that hand it to the page."""
        for number, wave_tC in enumerate(track.parts()):
            encoded = io.BytesIO()
            scaled_tC = finite(wave_tC) / np.float32(loud)
            rate = track.header.sample_rate
            soundfile.write(encoded, scaled_tC, rate, "PCM_16", format="FLAC")
            base64 = b64encode(encoded.getbuffer()).decode()
            text = f'take("{place}-{number}", "{base64}");\n'
            (self._files / f"{place}-{number}.js").write_text(text, encoding="ascii")

    def write(
        self,
        title: str,
        rows: Iterable[Row] = (),
        sort_by: str = "",
        names: Mapping[str, str] | None = None,
        units: Mapping[str, str] | None = None,
        labels: Mapping[str, Sequence] | None = None,
    ) -> Path:
        """Write the page and delete what only the old one used; return its path.

        Each row has the "id" of an example and its scores, None where it has none.
        Examples without audio have no player. The lowest score `sort_by` comes first;
        without one the id decides. `names` says how to write the scores; their unit is
        dB, or what `units` says.

        With `labels`, rows of `modules.data.labels` by id, keys say of each example
        whether its label is wrong, and the page writes them as `labels.csv`.
        """
        known: dict[str, None] = {}
        for row in rows:
            id_ = str(row["id"])
            scores = {k: _plain(v) for k, v in row.items() if k != "id"}
            known |= dict.fromkeys(scores)
            unheard = {"note": "", "tracks": []}
            self._examples.setdefault(id_, unheard)["scores"] = scores
        data = {
            "title": title,
            "folder": f"{self._files.parent.name}/{self._files.name}",
            "part": PART_SECONDS,
            "metrics": {name: (names or {}).get(name, name) for name in known},
            "units": {name: (units or {}).get(name, "dB") for name in known},
            "sortBy": sort_by if sort_by in known else "",
            "labels": labels,
            "examples": [
                {"id": id_, "scores": {}, **example}
                for id_, example in self._examples.items()
            ],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, _html(data))
        for old in self._files.parent.glob("[0-9a-f]" * 8):
            if old != self._files:
                shutil.rmtree(old, ignore_errors=True)
        return self.path


def _plain(value: str | float | None) -> str | float | None:
    """Return a score as strict JSON has it: NaN and infinity as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _place(number: int, name: str) -> str:
    """Return a name for files that any disk, archive and address keeps as it is."""
    return f"{number:04d}-{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[:40]}"


def _description(track: Track, place: str) -> dict[str, Any]:
    """What the page knows of a track."""
    rate, _, frames = track.header
    return {
        "name": track.name,
        "note": track.note,
        "file": place,
        "rate": min(max(rate, RATES[0]), RATES[1]),
        "seconds": frames / rate,
    }


def _html(data: Mapping[str, Any]) -> str:
    """Fill the template; `data` are text, never markup."""
    text = json.dumps(data, allow_nan=False)
    for character in "<>&":  # nothing in it can end the script element
        text = text.replace(character, f"\\u{ord(character):04x}")
    here = Path(__file__).parent
    page, style, script = (
        (here / f"listen.{kind}").read_text(encoding="utf-8")
        for kind in ("html", "css", "js")
    )
    # The data come last: they may hold the marks of the others.
    page = page.replace("/*style*/", style).replace("/*script*/", script)
    return page.replace("/*data*/", text)
