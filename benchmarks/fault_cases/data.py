"""R11: damaged audio and manifests: handled right, or one line with file and reason."""

import contextlib
import csv
import io
import os
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.fault_cases import Bench, Outcome, target
from benchmarks.fault_cases.jobs import Recipe, in_parallel, run, speech
from data_prep import stems, verify, wsj0mix
from data_prep.manifest import DataError, read_manifest
from tests.toy import RATE, make_corpus, make_songs

Damage = Callable[[Path], None]
ITEM = 3  # of the training mixtures


def rewrite(
    change: Callable[[np.ndarray], np.ndarray], rate: int = RATE, **form: str
) -> Damage:
    """Replace the samples of a file."""

    def damage(path: Path) -> None:
        wave = soundfile.read(path)[0]
        soundfile.write(path, change(wave), rate, **{"subtype": "FLOAT", **form})

    return damage


def put(value: float) -> Damage:
    """One sample of that value."""
    return rewrite(lambda wave: np.where(np.arange(len(wave)) == 500, value, wave))


def cut_16_bit(path: Path) -> None:
    """Half the bytes of a plain file, which is read directly."""
    rewrite(lambda wave: wave, subtype="PCM_16")(path)
    os.truncate(path, path.stat().st_size // 2)


def cut(path: Path) -> None:
    """Half the bytes."""
    os.truncate(path, path.stat().st_size // 2)


def web_page(path: Path) -> None:
    """What a failed download leaves."""
    path.write_text("<html>404</html>")


def empty(path: Path) -> None:
    """No bytes."""
    path.write_bytes(b"")


def odd_header(path: Path) -> None:
    """A header that says 32 channels."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, 22, 32)
    path.write_bytes(data)


def nothing(wave: np.ndarray) -> np.ndarray:
    """The samples as they are."""
    return wave


#: Damage to one file of one mixture: name, file, damage, what must happen in a run:
#: "error": one line with the path; "counted": left out and counted, the run goes on;
#: "verify": a possible signal, that only `data_prep.verify` objects to; "fine".
FORMS: list[tuple[str, str, Damage, str]] = [
    ("cut in half", "s1", cut, "error"),
    ("cut in half, 16 bit", "s1", cut_16_bit, "error"),
    ("mixture cut in half", "mix", cut, "error"),
    ("0 bytes", "s1", empty, "error"),
    ("a web page", "s1", web_page, "error"),
    ("missing", "s1", os.unlink, "error"),
    ("no samples", "s1", rewrite(lambda wave: wave[:0]), "error"),
    ("NaN in a source", "s1", put(np.nan), "counted"),
    ("NaN in the mixture", "mix", put(np.nan), "counted"),
    ("Inf in a source", "s2", put(np.inf), "counted"),
    ("Inf in the mixture", "mix", put(-np.inf), "counted"),
    ("1e25", "s1", put(1e25), "verify"),
    ("twice the rate", "s1", rewrite(nothing, rate=2 * RATE), "error"),
    ("stereo source", "s1", rewrite(lambda w: np.stack([w, w], 1)), "error"),
    ("stereo mixture", "mix", rewrite(lambda w: np.stack([w, w], 1)), "error"),
    ("32 channels", "s1", odd_header, "error"),
    ("source shorter", "s1", rewrite(lambda wave: wave[:-9]), "error"),
    ("source longer", "s1", rewrite(lambda wave: np.pad(wave, 9)), "error"),
    ("mixture shorter", "mix", rewrite(lambda wave: wave[:-9]), "error"),
    ("not the sum", "mix", rewrite(lambda wave: 0.5 * wave), "verify"),
    ("silent source", "s1", rewrite(np.zeros_like), "verify"),
    ("constant source", "s1", rewrite(lambda wave: 0 * wave + 0.1), "verify"),
    ("RF64", "s1", rewrite(nothing, format="RF64"), "fine"),
    ("WAVE_FORMAT_EXTENSIBLE", "s1", rewrite(nothing, format="WAVEX"), "fine"),
    ("24 bit", "s1", rewrite(nothing, subtype="PCM_24"), "fine"),
    ("64-bit float", "s1", rewrite(nothing, subtype="DOUBLE"), "fine"),
    ("32-bit float", "s1", rewrite(nothing), "fine"),
]


def silent_mixture(folder: Path) -> None:
    """All files of a mixture."""
    for part in ("mix", "s1", "s2"):
        rewrite(np.zeros_like)(item(folder, part))


def item(folder: Path, part: str) -> Path:
    """The file of the damaged mixture."""
    base = folder / "2speakers" / "wav8k" / "min" / "tr" / part
    return sorted(base.iterdir())[ITEM]


def verified(arguments: list[str]) -> tuple[int, str]:
    """Exit status and output of `python -m data_prep.verify`."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        status = verify.main(arguments)
    return status, text.getvalue()


def try_form(
    name: str, part: str, damage: Damage, expected: str, recipe: Recipe, folder: Path
) -> list[str]:
    """Verify and train on a damaged corpus; what is wrong with either."""
    place = folder / name.replace(" ", "_").replace(",", "")
    make_corpus(place)
    path = item(place, part) if part else item(place, "mix")
    if part:
        damage(path)
    else:
        damage(place)
    wrong = []
    status, text = verified([str(place / "2speakers")])
    # The bar's line ends without a line feed.
    lines = [
        line for line in text.replace("\r", "\n").splitlines() if path.name in line
    ]
    if expected == "fine":
        if status:
            wrong.append(f"{name}: verify objects: {lines[:1]}")
    elif status != 1 or not lines:
        wrong.append(f"{name}: verify says {status} and names nothing")

    data = {"data_folder": place / "2speakers", "output_folder": place / "run"}
    job = run(recipe.arguments(place / "run", **data))
    log = place / "run" / "train_log.txt"
    text = log.read_text() if log.exists() else ""
    if expected == "error":
        line = job.last_line
        if job.status != 1 or path.name not in line or not line.startswith("error: "):
            wrong.append(f"{name}: a run ends with {job.status}, {line!r}")
    elif job.status:
        wrong.append(f"{name}: a run ends with {job.status}, {job.last_line!r}")
    elif "nan" in text:
        wrong.append(f"{name}: NaN in the log")
    elif expected == "counted":
        named = path.stem in (place / "run" / "log.txt").read_text()
        if "train nonfinite: 1" not in text or not named:
            wrong.append(f"{name}: not counted, or not named in the log")
    return wrong


# ---------------------------------------------------------------------- manifests


def _cells(line: str, index: int, value: str) -> str:
    (cells,) = csv.reader([line])
    cells[index] = value
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


#: Changes to the lines of a manifest (header first), and what the message must say;
#: nothing where it must be read all the same.
MANIFESTS: list[tuple[str, Callable[[list[str]], list[str]], str]] = [
    ("extra field", lambda t: [*t[:2], t[2] + ",x", *t[3:]], "row 3"),
    ("missing field", lambda t: [*t[:2], t[2].rpartition(",")[0], *t[3:]], "row 3"),
    ("cut row", lambda t: [*t[:2], t[2][:7]], "row 3"),
    ("no id column", lambda t: [t[0].replace("id,", "", 1), *t[1:]], "'id'"),
    ("misnamed column", lambda t: [t[0].replace("source_2", "src2"), *t[1:]], "src2"),
    ("bad duration", lambda t: [*t[:2], _cells(t[2], 1, "long"), *t[3:]], "'long'"),
    ("negative duration", lambda t: [*t[:2], _cells(t[2], 1, "-1"), *t[3:]], "'-1'"),
    ("wrong duration", lambda t: [*t[:2], _cells(t[2], 1, "9"), *t[3:]], "row 3"),
    ("wrong rate", lambda t: [*t[:2], _cells(t[2], 2, "16000"), *t[3:]], "16000"),
    ("duplicate id", lambda t: [*t, t[2]], "already that of row 3"),
    ("header only", lambda t: t[:1], "no rows"),
    ("nothing", lambda t: [], "row 1"),
    ("$var in a path", lambda t: [*t[:2], t[2].replace("/tr/", "/$tr/")], "$tr"),
    ("relative path", lambda t: [*t[:2], _cells(t[2], 3, "mix.wav")], "absolute"),
    ("zero byte", lambda t: [*t[:2], t[2] + "\0"], "zero byte"),
    ("byte-order mark", lambda t: ["\ufeff" + t[0], *t[1:]], ""),
    ("CRLF", lambda t: [line + "\r" for line in t], ""),
    (
        "BOM and CRLF",
        lambda t: ["\ufeff" + t[0] + "\r", *(x + "\r" for x in t[1:])],
        "",
    ),
    ("blank lines", lambda t: [t[0], "", *t[1:], ""], ""),
    ("id with slashes", lambda t: [*t[:2], _cells(t[2], 0, "../a/b"), *t[3:]], ""),
    ("id with a comma", lambda t: [*t[:2], _cells(t[2], 0, "a, b"), *t[3:]], ""),
    ("UTF-8 id", lambda t: [*t[:2], _cells(t[2], 0, "ä日"), *t[3:]], ""),
]


def try_manifests(folder: Path) -> list[str]:
    """Read and verify each damaged manifest; what is wrong."""
    corpus = make_corpus(folder / "corpus with spaces, ü")
    good = wsj0mix.prepare(corpus, folder / "good")["train"]
    lines = Path(good).read_text().splitlines()
    wrong = []
    for name, change, message in MANIFESTS:
        path = folder / f"{name.replace(' ', '_')}.csv"
        path.write_text("\n".join(change(list(lines))) + "\n", newline="")
        try:
            rows, said = len(read_manifest(path, 2, RATE)), ""
        except DataError as error:
            rows, said = 0, str(error)
        if message:
            right = message in said and str(path) in said and "\n" not in said
        else:
            right = rows == len(lines) - 1
        if not right:
            wrong.append(f"manifest, {name}: {said or f'{rows} rows read'}")
        status, text = verified([str(path)])
        # A wrong rate is right for a run at that rate, but not for these files.
        if (status == 0) == bool(message) or (message and str(path) not in text):
            wrong.append(f"manifest, {name}: verify says {status}: {text[:100]!r}")
    path = folder / "latin.csv"
    path.write_bytes("\n".join(lines).encode().replace(b"a00", b"\xe4", 1))
    try:
        read_manifest(path)
        wrong.append("manifest, not UTF-8: read")
    except DataError as error:
        if str(path) not in str(error):
            wrong.append(f"manifest, not UTF-8: {error}")
    return wrong


# --------------------------------------------------------------------------- music


def resampled(path: Path) -> None:
    """The file at another rate than its song."""
    wave, rate = soundfile.read(path)
    soundfile.write(path, wave, rate * 48 // 44, subtype="FLOAT")


#: Damage to a stem of a song, and what preparing must say; nothing where it copes.
STEMS: list[tuple[str, Damage, str]] = [
    ("44.1 and 48 kHz in one song", resampled, "low.wav"),
    ("a missing stem", os.unlink, "low.wav"),
    ("an empty stem", empty, "low.wav"),
    ("a stem cut in half", cut, ""),
    ("a mono stem", rewrite(lambda wave: wave.mean(1)), ""),
    ("a 24-bit stem", rewrite(nothing, subtype="PCM_24"), ""),
    ("a WAVE_FORMAT_EXTENSIBLE stem", rewrite(nothing, format="WAVEX"), ""),
    ("an RF64 stem", rewrite(nothing, format="RF64"), ""),
    ("three channels", rewrite(lambda w: np.stack([w[:, 0]] * 3, 1)), "low.wav"),
]


def try_stems(folder: Path) -> list[str]:
    """Prepare and verify songs with a damaged stem; what is wrong."""
    wrong = []
    for number, (name, damage, message) in enumerate(STEMS):
        songs = make_songs(folder / f"songs{number}")
        damage(songs / "track2" / "low.wav")
        try:
            stems.prepare(songs, folder / f"out{number}", ["low", "high"], 1)
            said = ""
        except DataError as error:
            said = str(error)
        right = message in said and "track2" in said if message else not said
        if not right or "\n" in said:
            wrong.append(f"{name}: preparing says {said!r}")
        options = ["--layout=stems", "--sources=low,high"]
        status, text = verified([str(songs), *options])
        lines = [x for x in text.replace("\r", "\n").splitlines() if "track2" in x]
        whole = name.startswith(("a 24", "a WAVE", "an RF64"))
        told = any("low" in line or " Hz" in line for line in lines)
        if not whole and (status != 1 or not told):
            wrong.append(f"{name}: verify says {status}: {lines}")
    return wrong


@target(
    "R11",
    "every form of bad data: data_prep.verify lists file and reason and exits 1; a run "
    "leaves it out and counts it, or ends with one line naming the file; zero silent",
    "9 of 25 silent, 3 dead models",
)
def bad_data(bench: Bench) -> Outcome:
    """Static mixtures, so that what is on disk is what is trained on."""
    outcome = Outcome()
    recipe = speech(
        bench.folder,
        dynamic_mixing=False,
        speed_changes="null",
        segment_seconds="null",
        batch_size=2,
        N_epochs=1,
    )
    forms = FORMS[:: 5 if bench.brief else 1]
    work = [partial(try_form, *form, recipe, bench.folder / "forms") for form in forms]
    work.append(partial(try_form, "silent mixture", "", silent_mixture, "verify",
                        recipe, bench.folder / "forms"))  # fmt: skip
    work += [partial(try_manifests, bench.folder / "manifests")]
    work += [partial(try_stems, bench.folder / "stems")]
    for wrong in in_parallel(work):
        for text in wrong:
            outcome.expect(False, text)
    count = len(forms) + 2 + len(MANIFESTS) + len(STEMS)
    outcome.figure = (
        f"{count} forms, {len(outcome.failures)} silent or not explained; "
        f"{sum(form[3] == 'verify' for form in forms) + 1} found by verify alone"
    )
    shutil.rmtree(bench.folder / "forms", ignore_errors=True)
    return outcome
