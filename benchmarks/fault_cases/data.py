"""R11: damaged audio and manifests: handled right, or one line with file and reason.

Four groups: mixtures on disk, stems of music, utterances of dynamic mixing
(`utterances.py`) and manifests (`manifests.py`). Each damage is done to one file of a
small data set, which is then trained on and looked through by `data_prep.verify`.
"""

import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import soundfile

from benchmarks.fault_cases import Bench, Outcome, target
from benchmarks.fault_cases.damage import (
    NO_SIGNAL,
    SOUNDLESS,
    UNREADABLE,
    UNUSUAL,
    Change,
    Damage,
    constant,
    cut,
    cut_16_bit,
    nothing,
    resampled,
    rewrite,
    stereo,
    verified,
)
from benchmarks.fault_cases.jobs import Recipe, music, run, speech
from benchmarks.fault_cases.manifests import MANIFESTS, try_manifests
from benchmarks.fault_cases.parallel import in_parallel
from benchmarks.fault_cases.remains import log_of
from benchmarks.fault_cases.utterances import UTTERANCES, try_changed, try_pool
from tests.toy import RATE, make_corpus, make_songs

ITEM = 1  # of the mixtures of a split
SOURCES = "low,high"


@dataclass(frozen=True)
class Form:
    """A damage to one file of a data set, and what must happen in a run.

    `expected` is "error": one line with the path; "nonfinite" or "silent": counted
    under that name, and named where that is not everyday; "said": a line of the log
    names it; "fine": it is right. `is_right`: `data_prep.verify` must not object.
    """

    name: str
    place: str
    damage: Damage
    expected: str
    is_right: bool = False


# ------------------------------------------------------------------------ mixtures


def with_sum(change: Change) -> Damage:
    """Change the first source and the mixture, which is still the sum."""

    def damage(mixture: Path) -> None:
        sources = [mixture.parents[1] / part / mixture.name for part in ("s1", "s2")]
        rewrite(change)(sources[0])
        total = sum(soundfile.read(path)[0] for path in sources)
        rewrite(lambda wave: total)(mixture)

    return damage


def all_silent(mixture: Path) -> None:
    """Silence all files of a mixture."""
    for part in ("mix", "s1", "s2"):
        rewrite(np.zeros_like)(mixture.parents[1] / part / mixture.name)


#: Of training mixtures, and of those that are scored (cv, tt).
MIXTURES = [
    *(Form(name, "tr/s1", damage, "error") for name, damage in UNREADABLE.items()),
    *(Form(name, "tr/s1", damage, "nonfinite") for name, damage in NO_SIGNAL.items()),
    Form("NaN in the mixture", "tr/mix", NO_SIGNAL["NaN"], "nonfinite"),
    Form("Inf in the mixture", "tr/mix", NO_SIGNAL["Inf"], "nonfinite"),
    Form("missing", "tr/s1", Path.unlink, "error"),
    Form("cut in half", "tr/s1", cut, "error"),
    Form("cut in half, 16 bit", "tr/s1", cut_16_bit, "error"),
    Form("mixture cut in half", "tr/mix", cut, "error"),
    Form("twice the rate", "tr/s1", rewrite(nothing, rate=2 * RATE), "error"),
    Form("stereo source", "tr/s1", rewrite(stereo), "error"),
    Form("stereo mixture", "tr/mix", rewrite(stereo), "error"),
    Form("source shorter", "tr/s1", rewrite(lambda wave: wave[:-9]), "error"),
    Form("source longer", "tr/s1", rewrite(lambda wave: np.pad(wave, 9)), "error"),
    Form("mixture shorter", "tr/mix", rewrite(lambda wave: wave[:-9]), "error"),
    Form("not the sum", "tr/mix", rewrite(lambda wave: 0.5 * wave), "error"),
    # The mixture tells that the source should not be.
    *(Form(name, "tr/s1", damage, "error") for name, damage in SOUNDLESS.items()),
    Form("silent in the sum too", "tr/mix", with_sum(np.zeros_like), "silent"),
    Form("constant in the sum too", "tr/mix", with_sum(constant), "silent"),
    Form("silent mixture", "tr/mix", all_silent, "silent"),
    *(Form(name, "tr/s1", damage, "fine", True) for name, damage in UNUSUAL.items()),
    Form("NaN to validate on", "cv/s1", NO_SIGNAL["NaN"], "error"),
    Form("Inf to test on", "tt/mix", NO_SIGNAL["Inf"], "error"),
    Form("1e25 to validate on", "cv/s2", NO_SIGNAL["1e25"], "error"),
    Form("no sum to test on", "tt/mix", rewrite(lambda wave: 0.5 * wave), "error"),
    Form("silent to validate on", "cv/mix", with_sum(np.zeros_like), "said"),
    Form("silent mixture to test on", "tt/mix", all_silent, "said"),
]


def try_mixture(form: Form, workers: int, recipe: Recipe, folder: Path) -> list[str]:
    """Train on a damaged corpus, and verify it; return what is wrong with either."""
    place = folder / form.name.replace(" ", "_").replace(",", "")
    root = make_corpus(place)
    path = sorted((root / "wav8k" / "min" / form.place).iterdir())[ITEM]
    form.damage(path)
    wrong = judge(form, recipe, place, root, path.name, path.stem, workers)
    status, text = verified([str(root)])
    return wrong + unsaid(form, status, text, path.name)


# ------------------------------------------------------------------------ one form


def judge(
    form: Form,
    recipe: Recipe,
    place: Path,
    data: Path,
    path: str,
    logged: str,
    workers: int,
) -> list[str]:
    """Train; return what is wrong with the exit, the counts and the messages.

    `path`: the end of what an error must name; `logged`: what a line of the log must.
    """
    settings = {"data_folder": data, "num_workers": workers}
    job = run(recipe.arguments(place / "run", **settings))
    if form.expected == "error":
        line = job.last_line
        named = all(part in line for part in path.split("/"))
        if job.status != 1 or not named or not line.startswith("error: "):
            return [f"{form.name}: a run ends with {job.status}, {line!r}"]
        return []
    counts, said = log_of(place / "run")
    wrong = []
    if job.status or re.search(r" (loss|nsdr|si_snr): nan", counts):
        wrong.append(f"{form.name}: a run ends with {job.status}, {job.last_line!r}")
    if form.expected in ("nonfinite", "silent"):
        found = re.findall(rf"train .*{form.expected}: (\d+)", counts)
        if not found or found[0] == "0":
            wrong.append(f"{form.name}: {form.expected} is {found}")
    elif "train nonfinite: 0, train silent: 0," not in counts:
        wrong.append(f"{form.name}: counted as faulty: {counts[:200]!r}")
    if form.expected != "fine" and logged not in said:
        wrong.append(f"{form.name}: the log names no {logged}")
    return wrong


def unsaid(form: Form, status: int, text: str, name: str) -> list[str]:
    """Return what is wrong with the answer of `data_prep.verify`."""
    lines = [line for line in text.splitlines() if name in line]
    if form.is_right and status:
        return [f"{form.name}: verify objects: {lines[:1]}"]
    if not form.is_right and (status != 1 or not lines):
        return [f"{form.name}: verify says {status} and names nothing"]
    return []


# --------------------------------------------------------------------------- music

#: Place: the song (the first one is validated on) and its file; with "+" it has a
#: mixture file as well, and only that is read before training.
STEMS = [
    *(
        Form(f"{name} stem", "track2/low.wav", damage, "said")
        for name, damage in UNREADABLE.items()
    ),
    *(
        Form(f"{name} stem", "track2/low.wav", damage, "error")
        for name, damage in NO_SIGNAL.items()
    ),
    *(
        Form(f"{name} beside a mixture", "track2+/low.wav", damage, "nonfinite")
        for name, damage in NO_SIGNAL.items()
    ),
    *(
        Form(f"{name} stem", "track2/low.wav", damage, "silent")
        for name, damage in SOUNDLESS.items()
    ),
    Form("NaN in a mixture file", "track2+/mixture.wav", NO_SIGNAL["NaN"], "error"),
    Form("44.1 and 48 kHz in one song", "track2/low.wav", resampled, "error"),
    Form("a missing stem", "track2/low.wav", Path.unlink, "error"),
    Form("a stem cut in half", "track2/low.wav", cut, "said"),
    Form("a mono stem", "track2/low.wav", rewrite(lambda wave: wave.mean(1)), "said"),
    Form(
        "three channels",
        "track2/low.wav",
        rewrite(lambda wave: np.stack([wave[:, 0]] * 3, 1)),
        "error",
    ),
    *(
        Form(f"a {name} stem", "track2/low.wav", damage, "fine", True)
        for name, damage in list(UNUSUAL.items())[:3]
    ),
    *(
        Form(f"{name} to validate on", "track0/low.wav", damage, "error")
        for name, damage in NO_SIGNAL.items()
    ),
    *(
        Form(f"{name} to validate on", "track0/low.wav", damage, "said")
        for name, damage in SOUNDLESS.items()
    ),
    Form(
        "no sum to validate on",
        "track0+/mixture.wav",
        rewrite(lambda wave: 0.5 * wave),
        "said",
    ),
]


def try_stem(form: Form, workers: int, recipe: Recipe, folder: Path) -> list[str]:
    """Train on damaged songs, and verify them; return what is wrong with either."""
    place = folder / form.name.replace(" ", "_")
    songs = make_songs(place / "songs")
    track, _, file = form.place.partition("/")
    path = songs / track.removesuffix("+") / file
    if track.endswith("+"):
        stems = [soundfile.read(path.with_name(f"{s}.wav"))[0] for s in ("low", "high")]
        mixture = path.with_name("mixture.wav")
        soundfile.write(mixture, sum(stems), RATE, subtype="FLOAT")
    form.damage(path)
    # The log names the song (a segment of it, or its folder); no stem that rests.
    song = path.parent.name
    logged = "" if form.expected == "silent" else song
    wrong = judge(form, recipe, place, songs, f"{song}/{file}", logged, workers)
    status, text = verified([str(songs), "--layout=stems", f"--sources={SOURCES}"])
    # Toy songs fall short of some requirements, which name no song.
    if not form.is_right:
        wrong += unsaid(form, status, text, song)
    return wrong


# ----------------------------------------------------------------------------- row


@target(
    "R11",
    "every form of bad data: data_prep.verify lists file and reason and exits 1; a run "
    "leaves it out and counts it, or ends with one line naming the file; zero silent",
    "9 of 25 silent, 3 dead models",
)
def bad_data(bench: Bench) -> Outcome:
    """Use static mixtures, so that the files themselves are trained on."""
    outcome = Outcome()
    short = {"segment_seconds": "null", "batch_size": 2, "N_epochs": 1}
    # Made here: jobs that share a folder would make its data set at the same time.
    speaks = speech(bench.folder, dynamic_mixing=False, speed_changes="null", **short)
    plays = music(bench.folder, phase=1, truncation="none")
    every = 5 if bench.brief else 1
    work = []
    for kind, forms, recipe in (
        (try_mixture, MIXTURES[::every], speaks),
        (try_stem, STEMS[::every], plays),
    ):
        place = bench.folder / kind.__name__
        # What the message is must not depend on which process reads.
        work += [
            partial(kind, form, number % 2, recipe, place)
            for number, form in enumerate(forms)
        ]
    audio_forms = len(work)
    pools = [UTTERANCES[::2], UTTERANCES[1::2]][: 1 if bench.brief else 2]
    mixes = partial(try_pool, recipe=speaks)
    work += [
        partial(mixes, pool, folder=bench.folder / f"pool{number}")
        for number, pool in enumerate(pools)
    ]
    work.append(partial(try_changed, bench.folder / "changed"))
    work.append(partial(try_manifests, bench.folder / "manifests"))
    # SpeechBrain lists the installed packages, which takes half the time of a toy job.
    with patch("speechbrain.utils.logger.get_environment_description", return_value=""):
        results = in_parallel(work, processes=4)  # much of the time waits for the disk
    for text in (text for wrong in results for text in wrong):
        outcome.expect(False, text)
    count = audio_forms + sum(map(len, pools)) + len(UTTERANCES) + 4 + len(MANIFESTS)
    outcome.figure = (
        f"{count} forms, {len(outcome.failures)} silent or not explained; "
        "0 found by verify alone"
    )
    for kind in (try_mixture, try_stem):
        shutil.rmtree(bench.folder / kind.__name__, ignore_errors=True)
    return outcome
