"""R18, R19: names in any bytes, and headers that do not know their length."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.fault_cases import Bench, Outcome, target
from benchmarks.fault_cases.damage import verified
from benchmarks.fault_cases.jobs import Recipe, music, run, speech
from benchmarks.fault_cases.remains import held, same
from tests.toy import RATE, make_corpus, make_songs

#: In the order in which data sets list them.
NAMES = sorted(
    [
        *(b"caf\xe9", b"caf\xe8", b"CAF\xe9", b"x" * 200, b"dots. ", b"<key> $var %s"),
        *(b"two\nlines\x1b[2J", b"two_lines_[2J", b'a, b "c"', "日本語 🎷".encode()),
        *(unicodedata.normalize(form, "café").encode() for form in ("NFC", "NFD")),
    ],
    key=os.fsdecode,
)

#: What the header of a WAV written into a pipe says of its bytes.
ENDLESS = b"\xff\xff\xff\xff"


def _data(folder: Path, count: int, tested: int) -> list[tuple[Recipe, Path]]:
    """Return recipes that read the files themselves, and where these are."""
    mixtures = make_corpus(folder / "mixtures", (count, 1, tested))
    songs = make_songs(folder / "songs", count)
    shared = {"segment_seconds": "null", "N_epochs": 1, "data_folder": mixtures}
    plays = music(folder, phase=1, truncation="none", valid_tracks=count // 2)
    return [
        (speech(folder, dynamic_mixing=False, **shared), mixtures),
        (plays, songs),
    ]


def _verdict(recipe: Recipe, data: Path) -> list[str]:
    """Return the last line of `data_prep.verify`, which counts faults."""
    layout = ["--layout=stems", "--sources=low,high"] if recipe.name == "music" else []
    return verified([str(data), *layout])[1].splitlines()[-1:]


def rename(group: list[Path], names: list[bytes]) -> None:
    """Give each file or folder the name of its place in the order."""
    for path, name in zip(sorted(group), names, strict=True):
        new = os.fsencode(path.parent) + b"/m" + name + os.fsencode(path.suffix)
        os.rename(path, new)


@target(
    "R18",
    "names in any bytes or Unicode form, with line ends or commas: trained on, tested, "
    "verified as plain ones are, the same weights; no two share an output",
    "not measured",
)
def odd_names(bench: Bench) -> Outcome:
    """Rename mixtures and songs so that their order stays; train on both."""
    outcome, count = Outcome(), len(NAMES)
    settings = {"n_audio_to_save": count, "tensorboard": True}
    for recipe, data in _data(bench.folder, count, count):
        what = recipe.name
        groups = [data] if what == "music" else list(data.glob("wav8k/min/t[rt]/*"))
        ends = []
        for kind in ("plain", "odd"):
            names = [b"%02d" % n for n in range(count)] if kind == "plain" else NAMES
            for group in groups:
                rename(list(group.iterdir()), names)
            folder = bench.folder / f"{what}_{kind}"
            job = run(recipe.arguments(folder, **settings))
            outcome.expect(job.status == 0, f"{what}: {job.status}, {job.last_line}")
            ends.append((folder, _verdict(recipe, data)))
        if not outcome.passed:
            continue
        (plain, right), (odd, found) = ends
        states = held(plain), held(odd)
        for state in states:  # the losses of stems are kept with the songs' names
            state.get("stem_losses.ckpt", {}).pop("tracks", None)
        outcome.expect(same(*states), f"{what}: other weights")
        wanted, made = (len(os.listdir(end / "audio")) for end in (plain, odd))
        outcome.expect(made == wanted, f"{what}: {made} outputs of {wanted}")
        outcome.expect(found == right, f"{what}: verify says {found}, not {right}")
    bits = ", same bits" if outcome.passed else ""
    outcome.figure = f"{count} names of mixtures and of songs{bits}"
    return outcome


def whole(path: Path) -> None:
    """Leave the file as it is."""


def endless(path: Path) -> None:
    """Let the header of a FLAC say 0 samples, of a WAV more than there are."""
    raw = path.read_bytes()
    if path.suffix == ".flac":
        raw = raw[:21] + bytes([raw[21] & 0xF0]) + bytes(4) + raw[26:]
    else:
        raw = raw[:4] + ENDLESS + raw[8:40] + ENDLESS + raw[44:]
    path.write_bytes(raw)


def a_little_more(path: Path) -> None:
    """Let the header of a WAV say 9 ms more than there are."""
    raw = path.read_bytes()
    held = int.from_bytes(raw[40:44], "little")
    more = (held + 2 * (9 * RATE // 1000)).to_bytes(4, "little")
    path.write_bytes(raw[:40] + more + raw[44:])


def rewrite_all(data: Path, suffix: str) -> None:
    """Write all files in 16 bits; a mixture stays the sum."""
    for path in sorted(data.rglob("*.*"), key=lambda path: path.parent.name == "mix"):
        wave = soundfile.read(path)[0]
        if path.parent.name == "mix":
            sources = [path.parents[1] / s / path.name for s in ("s1", "s2")]
            wave = sum(soundfile.read(p.with_suffix(suffix))[0] for p in sources)
        path.unlink()
        wave = np.round(wave * 2**15) / 2**15
        soundfile.write(path.with_suffix(suffix), wave, RATE, subtype="PCM_16")


@target(
    "R19",
    "a header that does not know its length, or claims 10 ms more than there are: read "
    "as the whole file is, in mixtures, utterances, songs, and verified; same weights",
    "a hang, a traceback, or a length of 9e18",
)
def unknown_lengths(bench: Bench) -> Outcome:
    """Spoil the headers of all files; the samples stay, and so must the weights."""
    outcome, tried = Outcome(), 0
    read, songs = _data(bench.folder, 4, 2)
    mixed = Recipe(read[0].yaml, read[0].settings | {"dynamic_mixing": True})
    for suffix, recipes, forms in (
        (".flac", [read, (mixed, read[1])], (whole, endless)),
        (".wav", [read, songs], (whole, endless, a_little_more)),
    ):
        for data in {data for _, data in recipes}:
            rewrite_all(data, suffix)
        kept = {p: p.read_bytes() for _, data in recipes for p in data.rglob("*.*")}
        ends: dict[int, tuple] = {}
        for form in forms:
            for path, raw in kept.items():
                path.write_bytes(raw)
                form(path)
            for number, (recipe, data) in enumerate(recipes):
                what = f"{form.__name__} {suffix} {number}"
                folder = bench.folder / what.replace(" ", "_")
                job = run(recipe.arguments(folder))
                tried += 1
                if outcome.expect(job.status == 0, f"{what}: {job.last_line}"):
                    end = held(folder), _verdict(recipe, data)
                    right = ends.setdefault(number, end)
                    outcome.expect(same(end[0], right[0]), f"{what}: other weights")
                    outcome.expect(end[1] == right[1], f"{what}: verify says {end[1]}")
        for path, raw in kept.items():
            path.write_bytes(raw)
    bits = ", same bits" if outcome.passed else ""
    outcome.figure = f"{tried} runs over 3 kinds of headers{bits}"
    return outcome
