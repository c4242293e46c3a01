"""Find the stems whose label is wrong, and listen to the suspects.

    python -m data_prep.music.audit --data_folder=/data/sdxdb23_labelnoise --out=audit
    ... --run=results/htdemucs_noisy/1234
    ... --run="[results/half1/1234, results/half2/1234]"

What is heard in each stem is judged by its label's other tracks; that needs no model.
With `--run` the losses of the training count too, and the run's network separates each
stem alone and each mixture: of several runs, those judge a track that did not train on
it. The command continues where it was interrupted.

The probability of a wrong label is that of what is heard, which a recogniser states
that learnt from the labels themselves: it is as good as most of the labels are. What
the runs say moves its logit. Files in `--out`:

    audit.csv      a row for each stem, the worst first: `wrong`, how probably the label
                   is wrong, `sounds_like`, and the signals; for `--labels=`
    keep.json      {source: [track, ...]} of the stems that are probably right, for
                   `--train_stems=` of a recipe
    listen.html    a page to hear the suspects; its keys write labels.csv
    heard.csv, separated.csv, settings.json
                   what was found so far, and what it depends on

Shapes: S source, C channel, T sample.
"""

import functools
import json
import math
import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from data_prep.common.jobs import claim_folder, digest_of
from data_prep.common.tracks import MissingStems
from data_prep.music.content import RATE, bleed_db, cut_windows, hear, suspects
from data_prep.music.evidence import less_median, loss_signals, mean_of, standard
from data_prep.music.filter import judge, load_model, read_stem
from data_prep.music.manifests import SOURCES, judged_tracks
from modules.audio.io import read_header
from modules.data.labels import COLUMNS, Key, Label
from modules.data.manifest import Row
from modules.inference.songs import apply_model
from modules.monitor.listen.page import ListenPage, Track
from modules.runtime.cli import run as run_command
from modules.runtime.devices import check_device
from modules.runtime.errors import DataError
from modules.runtime.files import write_text
from modules.runtime.tables import read_table, write_table

SEPARATED = ("run", "track", "stem", "margin_db", "cross")
MODELS = 0.5  # logits for each spread that the runs find a stem above the median
BLEED_DB, SLOPE_DB = -27.0, 2.0  # bleed that is as probably wrong as not, and a logit
SHOWN = 20  # lines for the console
Signals = dict[str, dict[Key, float]]


class Judge:
    """A trained network, the folder of its run, and the tracks it was trained on."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder = folder
        self.model = load_model(folder).to(device)
        rows = self.folder / "save" / "train.csv"
        found = read_table(rows, ("id",)) if rows.is_file() else ()
        self.trained_on = {row["id"] for _, row in found}

    @torch.no_grad()
    def separate(self, mix_CT: Tensor) -> Tensor:
        """Return the estimates of a mixture at the model's rate, [S, C, T]."""
        mix_BCT = mix_CT[None].to(next(self.model.parameters()).device)
        return apply_model(self.model, mix_BCT, shifts=1, normalize=True)[0].cpu()


def fair(judges: Sequence[Judge], track: str) -> Sequence[Judge]:
    """Return those that were not trained on a track, or all if every one was."""
    return [one for one in judges if track not in one.trained_on] or judges


def read_stems(track: Row, sample_rate: int) -> Tensor:
    """Return the stems of a track [S, C, T]; silence follows where one ends early."""
    waves = [read_stem(path, sample_rate) for path in track.sources]
    frames = max(wave_CT.shape[1] for wave_CT in waves)
    return torch.stack([F.pad(wave, (0, frames - wave.shape[1])) for wave in waves])


def cross_energy(est_SCT: Tensor, stem_SCT: Tensor) -> list[float]:
    """Return how much more each stem shares with other estimates than with its own.

    What the estimate of one source and the stem of another have in common is the square
    of their correlation. It is searched both ways: what was moved into a stem is in the
    others' estimates, what is missing from it is in its own estimate and their stems.
    """
    est_ST, stem_ST = (F.normalize(x.flatten(1), dim=1) for x in (est_SCT, stem_SCT))
    common_SS = (est_ST @ stem_ST.T).square()
    own_S = common_SS.diag()
    others_SS = torch.maximum(common_SS, common_SS.T).fill_diagonal_(0)
    return (others_SS.amax(1) - own_S).tolist()


def separate_all(
    judges: Sequence[Judge], tracks: Sequence[Row], loud: Collection[Key], out: Path
) -> Signals:
    """Let the judges separate the stems that are not silent; continue `separated.csv`.

    Return `margin`, how far other outputs reach above the stem's own in the filter of
    `data_prep.music.filter`, and `cross`, see `cross_energy`: the mean over the judges,
    less the median of all stems of the name.
    """
    table = out / "separated.csv"
    rows = [row for _, row in read_table(table, SEPARATED)] if table.is_file() else []
    done = {(row["run"], row["track"]) for row in rows}
    jobs = [(one, track) for track in tracks for one in fair(judges, track.id)]
    if unfair := sorted({t.id for one, t in jobs if t.id in one.trained_on}):
        print(f"{len(unfair)} tracks are judged by networks that were trained on them")
    for one, track in tqdm(jobs, desc="separate"):
        if (str(one.folder), track.id) in done:
            continue
        stem_SCT = read_stems(track, one.model.sample_rate)
        cross = cross_energy(one.separate(stem_SCT.sum(0)), stem_SCT)
        parts = zip(one.model.sources, stem_SCT, cross, strict=True)
        for name, stem_CT, common in parts:
            if (track.id, name) in loud:
                margin, _ = judge(one.model, stem_CT, name)
                cells = str(one.folder), track.id, name, str(margin), str(common)
                rows.append(dict(zip(SEPARATED, cells, strict=True)))
        write_table(table, SEPARATED, (row.values() for row in rows))
    found: Signals = {}
    for name, column, sign in (("margin", "margin_db", -1), ("cross", "cross", 1)):
        of_runs: Signals = {row["run"]: {} for row in rows}
        for row in rows:
            key = row["track"], row["stem"]
            of_runs[row["run"]][key] = sign * float(row[column])
        found[name] = mean_of([less_median(signal) for signal in of_runs.values()])
    return found


def heard_in(
    tracks: Sequence[Row], sources: Sequence[str], out: Path, seed: int
) -> dict[Key, dict[str, float]]:
    """Return what is heard in each stem that is not silent, and `bleed`, in dB.

    `heard.csv` keeps it.
    """
    table, columns = out / "heard.csv", ["track", "stem", "bleed", *sources]
    if not table.is_file():
        stems, bleed = {}, {}
        for track in tqdm(tracks, desc="read"):
            stem_SCT = read_stems(track, RATE)
            decibels = bleed_db(stem_SCT)
            for name, stem_CT, db in zip(sources, stem_SCT, decibels, strict=True):
                stems[track.id, name] = cut_windows(stem_CT)
                bleed[track.id, name] = db
        heard = hear(stems, sources, seed)
        rows = ([*key, bleed[key], *x.values()] for key, x in heard.items())
        write_table(table, columns, rows)
    return {
        (row["track"], row["stem"]): {name: float(row[name]) for name in columns[2:]}
        for _, row in read_table(table, columns)
    }


def audit(
    data_folder: str | Path,
    out: Path,
    run: Sequence[str] = (),
    separate: bool = True,
    checkpoint: str | None = None,
    sources: Sequence[str] = SOURCES,
    missing_stems: MissingStems = "refuse",
    listen: int = 50,
    seed: int = 0,
    device: str = "cpu",
) -> str:
    """Judge every stem of a data set but those of `test`; return a summary.

    Arguments
    ---------
    data_folder : str | Path
        Tracks with stems.
    out : Path
        Folder of the results.
    run : Sequence[str]
        Folders of runs of a music recipe, separated by commas.
    separate : bool
        Let the runs' networks separate the stems; without it their losses count alone.
    checkpoint : str | None
        Another model: a run's folder, one that export.py wrote, or published weights.
    sources : Sequence[str]
        Names of the stems, if no model says them.
    missing_stems : str
        A stem that a track lacks is an error (refuse), or silent.
    listen : int
        Suspects to hear on the page.
    seed : int
        Draws what the recogniser learns from.
    device : str
        Where to separate.
    """
    check_device(device)
    runs = [Path(str(name).strip(" []")) for name in run]
    folders = runs * separate + ([Path(checkpoint)] if checkpoint else [])
    judges = [Judge(folder, device) for folder in folders]
    for one in judges:
        sources = list(one.model.sources)
        if sources != list(judges[0].model.sources):
            first = f"{judges[0].folder} {list(judges[0].model.sources)}"
            raise DataError(f"{one.folder} has the stems {sources}, {first}")
    folder = Path(data_folder).absolute()
    tracks = judged_tracks(folder, sources, missing_stems)
    files = []
    for path in (path for track in tracks for path in track.files):
        read_header(path)  # what is missing or damaged is named before the work
        files.append((path, os.stat(path).st_size, os.stat(path).st_mtime_ns))
    settings = {"data_folder": str(folder), "sources": list(sources), "seed": seed}
    settings["files"] = digest_of(json.dumps(files))
    settings["models"] = [str(one.folder.absolute()) for one in judges]
    claim_folder(out, settings, "settings.json")
    heard = heard_in(tracks, sources, out, seed)
    if not heard:
        raise DataError(f"{folder}: a track is judged by others; two must sound")
    signals: Signals = {}
    signals["content"], sounds_like = suspects(heard, sources)
    signals["bleed"] = {key: of_stem["bleed"] for key, of_stem in heard.items()}
    if judges:
        signals |= separate_all(judges, tracks, heard, out)
    tables = [folder / "stem_losses.csv" for folder in runs]
    losses = [loss_signals(path) for path in tables if path.is_file()]
    for name in dict.fromkeys(name for of_run in losses for name in of_run):
        signals[name] = mean_of([of_run[name] for of_run in losses if name in of_run])
    # The sums of the same losses are one witness, not several.
    of_losses = mean_of([standard(signals[name]) for name in (losses or [{}])[0]])
    witnesses = [standard(signals[n]) for n in ("margin", "cross") if n in signals]
    judged = mean_of([*witnesses, *filter(None, [of_losses])])
    wrong: dict[Key, float] = {}
    for key, content in signals["content"].items():
        score = max(content, (signals["bleed"][key] - BLEED_DB) / SLOPE_DB)
        wrong[key] = 1 / (1 + math.exp(-score - MODELS * judged.get(key, 0.0)))
    order = sorted(wrong, key=lambda key: (-wrong[key], key))
    labels = {key: Label(round(wrong[key], 6), sounds_like[key]) for key in order}
    rows = [
        [*key, *label, *(signal.get(key, "") for signal in signals.values())]
        for key, label in labels.items()
    ]
    write_table(out / "audit.csv", [*COLUMNS, *signals], rows)
    keep = {
        name: sorted(
            track
            for (track, stem), label in labels.items()
            if stem == name and not label.is_wrong
        )
        for name in sources
    }
    write_text(out / "keep.json", json.dumps(keep, indent=2) + "\n")
    page = write_page(out, tracks, sources, judges, labels, listen)
    return "\n".join(summary(labels, len(tracks) * len(sources), page))


def write_page(
    out: Path,
    tracks: Sequence[Row],
    sources: Sequence[str],
    judges: Sequence[Judge],
    labels: Mapping[Key, Label],
    listen: int,
) -> Path:
    """Write the page of the worst: the mixture, the stem, and the model's estimate."""
    page = ListenPage(out)
    shown = list(labels)[:listen]
    for track in tracks:
        stems = [stem for track_id, stem in shown if track_id == track.id]
        if not stems:
            continue
        one = fair(judges, track.id)[0] if judges else None
        rate = one.model.sample_rate if one else RATE
        stem_SCT = read_stems(track, rate)
        est_SCT = one.separate(stem_SCT.sum(0)) if one else stem_SCT
        for stem in stems:
            place = list(sources).index(stem)
            waves = {"mixture": stem_SCT.sum(0), f"labelled {stem}": stem_SCT[place]}
            waves |= {"what the model calls so": est_SCT[place]} if one else {}
            players = [Track.of_wave(k, w.numpy(), rate) for k, w in waves.items()]
            like = labels[track.id, stem].sounds_like
            note = f"Sounds like {like}." if like else ""
            page.add(f"{track.id} {stem}", players, note)
    given = {f"{t} {stem}": (t, stem, *label) for (t, stem), label in labels.items()}
    scores: list[dict[str, Any]] = [
        {"id": id_, "right": 1 - row[2]} for id_, row in given.items()
    ]
    heading = {"right": "probably right"}
    return page.write("Audit of labels", scores, "right", heading, {"right": ""}, given)


def summary(labels: Mapping[Key, Label], stems: int, page: Path) -> Iterable[str]:
    """Yield lines for the console: the worst stems, and the files."""
    suspect = sum(label.is_wrong for label in labels.values())
    yield f"{suspect} of {len(labels)} stems are probably wrong"
    if silent := stems - len(labels):
        yield f"{silent} silent stems were not judged"
    for (track, stem), label in list(labels.items())[:SHOWN]:
        like = f"sounds like {label.sounds_like}" if label.sounds_like else ""
        yield f"{label.wrong:6.2f}  {stem:<8} {track}  {like}".rstrip()
    yield f"{page.parent}/audit.csv, keep.json"
    yield f"listen       {page}"


PROGRAM = "python -m data_prep.music.audit"
main = functools.partial(run_command, PROGRAM, __doc__, {"audit": audit}, report=print)

if __name__ == "__main__":
    sys.exit(main())
