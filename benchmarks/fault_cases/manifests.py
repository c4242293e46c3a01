"""Damaged manifests, for R11: each is read, or refused in one line with the row."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

from benchmarks.fault_cases.damage import verified
from data_prep.wsj0mix import manifests as wsj0mix
from modules.data.manifest import read_manifest
from modules.runtime.errors import DataError
from tests.toy import RATE, make_corpus


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
    ("an id in bytes", lambda t: [*t[:2], _cells(t[2], 0, "\udce4"), *t[3:]], ""),
]


def try_manifests(folder: Path) -> list[str]:
    """Read and verify each damaged manifest; return what is wrong."""
    corpus = make_corpus(folder / "corpus with spaces, ü")
    good = wsj0mix.prepare(corpus, folder / "good")["train"]
    lines = Path(good).read_text().splitlines()
    wrong = []
    for name, change, message in MANIFESTS:
        path = folder / f"{name.replace(' ', '_')}.csv"
        text = "\n".join(change(list(lines))) + "\n"
        path.write_bytes(text.encode(errors="surrogateescape"))
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
    return wrong
