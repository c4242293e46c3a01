"""Damaged utterances, for R11: dynamic mixing leaves out and names each, or stops."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.fault_cases.damage import (
    NO_SIGNAL,
    SOUNDLESS,
    UNREADABLE,
    Damage,
    cut,
    cut_16_bit,
    nothing,
    rewrite,
    stereo,
)
from benchmarks.fault_cases.jobs import Recipe, run
from benchmarks.fault_cases.remains import log_of
from modules.data.dynamic_mixing import DynamicMixing
from modules.data.utterances import UtterancePool
from modules.runtime.errors import AudioError
from tests.toy import RATE

#: Damage to an utterance, and what the log must say of it.
UTTERANCES: list[tuple[str, Damage, str]] = [
    *(
        (name, damage, "cannot be read")
        for name, damage in list(UNREADABLE.items())[:2]
    ),
    ("no samples", UNREADABLE["no samples"], "empty"),
    ("32 channels", UNREADABLE["32 channels"], "cannot be read|32 channels"),
    ("NaN", NO_SIGNAL["NaN"], "NaN or Inf"),
    ("Inf", NO_SIGNAL["Inf"], "NaN or Inf"),
    ("1e25", NO_SIGNAL["1e25"], "times full scale"),
    ("silent", SOUNDLESS["silent"], "silent"),
    ("constant", SOUNDLESS["constant"], "silent: a constant"),
    ("cut in half", cut, "truncated"),
    ("cut in half, 16 bit", cut_16_bit, "truncated"),
    ("stereo", rewrite(stereo), "2 channels"),
]


def make_talkers(folder: Path, takes: int) -> list[Path]:
    """Write utterances of three talkers; return those of the first one."""
    rng = np.random.default_rng(0)
    for talker in ("ann", "bob", "cid"):
        for take in range(takes):
            path = folder / talker / f"{talker}{take}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            wave = 0.1 * rng.standard_normal(RATE)
            soundfile.write(path, wave, RATE, subtype="FLOAT")
    return sorted((folder / "ann").iterdir())


def try_pool(
    forms: Sequence[tuple[str, Damage, str]], recipe: Recipe, folder: Path
) -> list[str]:
    """Mix with damaged utterances; return those that are not left out and named."""
    first = make_talkers(folder / "talkers", len(forms) + 1)
    for path, (_, damage, _) in zip(first, forms, strict=False):
        damage(path)
    job = run(
        recipe.arguments(
            folder / "run",
            dynamic_mixing=True,
            base_folder_dm=folder / "talkers",
            examples_per_epoch=6,
        )
    )
    if job.status:
        return [f"utterances: a run ends with {job.status}, {job.last_line!r}"]
    _, said = log_of(folder / "run")
    wrong = []
    if f"left out {len(forms)} of {3 * len(first)} files" not in said:
        wrong.append(f"utterances: {said[:300]!r}")
    for path, (name, _, reason) in zip(first, forms, strict=False):
        if not re.search(rf"{path.name} \([^)]*(?:{reason})", said):
            wrong.append(f"utterance, {name}: not named with {reason!r}")
    return wrong


def try_changed(folder: Path) -> list[str]:
    """Change utterances after the scan; return each message that is not one line."""
    path, *_ = make_talkers(folder, 1)
    dataset = DynamicMixing(
        UtterancePool.scan(folder), 3, RATE, 0.5, speed_changes=None
    )
    whole, wrong = path.read_bytes(), []
    changes = [(name, damage) for name, damage, _ in UTTERANCES]
    changes += [
        ("another recording", rewrite(lambda wave: 0.3 * wave[::-1])),
        ("longer", rewrite(lambda wave: np.tile(wave, 2))),
        ("at another rate", rewrite(nothing, rate=2 * RATE)),
        ("missing", Path.unlink),
    ]
    for name, damage in changes:
        damage(path)
        try:
            dataset[0]
            wrong.append(f"utterance changed, {name}: read")
        except AudioError as error:
            if str(path) not in str(error) or "\n" in str(error):
                wrong.append(f"utterance changed, {name}: {str(error)!r}")
        path.write_bytes(whole)
    dataset[0]  # the same samples in a newer file
    return wrong
