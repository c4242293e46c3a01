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
"""

import functools
import json
import math
import statistics
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from data_prep.common.jobs import claim_folder
from data_prep.music.content import RATE, content_of, cut_windows, hear
from data_prep.music.evidence import (
    combine,
    less_median,
    loss_signals,
)
from data_prep.music.filter import judge, load_model
from data_prep.music.manifests import SOURCES, find_tracks
from modules.audio.io import read_header, read_stereo
from modules.audio.resample import resample
from modules.data.labels import COLUMNS, Key, Label
from modules.data.manifest import Row
from modules.inference.songs import SongModel, apply_model
from modules.monitor.listen.page import ListenPage, Track
from modules.runtime.cli import run as run_command
from modules.runtime.devices import check_device
from modules.runtime.errors import DataError
from modules.runtime.files import write_text
from modules.runtime.tables import read_table, write_table

SEPARATED = ("run", "track", "stem", "margin_db", "cross")
MODELS = 0.5  # logits for each spread that the runs find a stem above the median
Signals = dict[str, dict[Key, float]]


class Judge:
    """A trained network, the folder of its run, and the tracks it was trained on."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder = folder
        self.model: SongModel = load_model(folder).to(device)
        rows = self.folder / "save" / "train.csv"
        found = read_table(rows, ("id",)) if rows.is_file() else ()
        self.trained_on = {row["id"] for _, row in found}

    @torch.no_grad()
    def separate(self, mix_CT: Tensor) -> Tensor:
        """Return the estimates of a mixture at the model's rate, [S, C, T]."""
        mix_BCT = mix_CT[None].to(next(self.model.parameters()).device)
        return apply_model(self.model, mix_BCT, shifts=1, normalize=True)[0].cpu()


def read_stems(track: Row, sample_rate: int) -> Tensor:
    """Return the stems of a track [S, C, T]; silence follows where one ends early."""
    waves = [
        resample(read_stereo(path), read_header(path).sample_rate, sample_rate)
        for path in track.sources
    ]
    longest = max(wave_CT.shape[1] for wave_CT in waves)
    return torch.stack(
        [F.pad(wave_CT, (0, longest - wave_CT.shape[1])) for wave_CT in waves]
    )


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
    if not judges:
        return {}
    table = out / "separated.csv"
    rows = [row for _, row in read_table(table, SEPARATED)] if table.is_file() else []
    done = {(row["run"], row["track"]) for row in rows}
    names = list(judges[0].model.sources)
    jobs = []
    for track in tracks:
        fair = [one for one in judges if track.id not in one.trained_on]
        jobs += [(one, track) for one in fair or judges]
    unfair = sum(all(t.id in one.trained_on for one in judges) for t in tracks)
    if unfair:
        print(f"{unfair} tracks are judged by a network that was trained on them")
    for one, track in tqdm(jobs, desc="separate"):
        if (str(one.folder), track.id) in done:
            continue
        stem_SCT = read_stems(track, one.model.sample_rate)
        cross = cross_energy(one.separate(stem_SCT.sum(0)), stem_SCT)
        for name, stem_CT, common in zip(names, stem_SCT, cross, strict=True):
            if (track.id, name) in loud:
                margin, _ = judge(one.model, stem_CT, name)
                values = str(one.folder), track.id, name, str(margin), str(common)
                rows.append(dict(zip(SEPARATED, values, strict=True)))
        write_table(table, SEPARATED, (row.values() for row in rows))
    found: Signals = {}
    for name, column, sign in (("margin", "margin_db", -1), ("cross", "cross", 1)):
        of_runs = []
        for run in dict.fromkeys(row["run"] for row in rows):
            own = [row for row in rows if row["run"] == run]
            signal = {(r["track"], r["stem"]): sign * float(r[column]) for r in own}
            of_runs.append(less_median(signal))
        found[name] = mean_of(of_runs)
    return found


def mean_of(signals: Sequence[Mapping[Key, float]]) -> dict[Key, float]:
    """Return the mean of each stem over the signals that judge it."""
    keys = dict.fromkeys(key for signal in signals for key in signal)
    return {k: statistics.fmean(s[k] for s in signals if k in s) for k in keys}


def heard_in(
    tracks: Sequence[Row], sources: Sequence[str], out: Path, seed: int
) -> dict[Key, dict[str, float]]:
    """Return what is heard in each stem that is not silent; keep it as `heard.csv`."""
    table = out / "heard.csv"
    if not table.is_file():
        stems = {
            (track.id, name): cut_windows(path)
            for track in tqdm(tracks, desc="read")
            for name, path in zip(sources, track.sources, strict=True)
        }
        heard = hear(stems, sources, seed)
        rows = ([*key, *(f"{p:.4f}" for p in x.values())] for key, x in heard.items())
        write_table(table, ["track", "stem", *sources], rows)
    return {
        (row["track"], row["stem"]): {name: float(row[name]) for name in sources}
        for _, row in read_table(table, ["track", "stem", *sources])
    }


def audit(
    data_folder: str | Path,
    out: Path,
    run: Sequence[str] = (),
    separate: bool = True,
    checkpoint: str | None = None,
    sources: Sequence[str] = SOURCES,
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
        Another model: the folder of a run, or one that export.py wrote.
    sources : Sequence[str]
        Names of the stems, if no model says them.
    listen : int
        Suspects to hear on the page.
    seed : int
        Draws what the network that hears the content learns from.
    device : str
        Where to separate.
    """
    check_device(device)
    runs = [Path(str(name).strip(" []")) for name in run]
    folders = [*runs] if separate else []
    folders += [Path(checkpoint)] if checkpoint else []
    judges = [Judge(folder, device) for folder in folders]
    for one in judges:
        sources = list(one.model.sources)
        if sources != list(judges[0].model.sources):
            first = f"{judges[0].folder} {list(judges[0].model.sources)}"
            raise DataError(f"{one.folder} has the stems {sources}, {first}")
    folder = Path(data_folder).absolute()
    # Nothing need be held out; with a single track nothing can be.
    found = find_tracks(folder, sources, None if (folder / "valid").is_dir() else 0)
    tracks = sorted([*found["train"], *found.get("valid", ())], key=lambda t: t.id)
    for track in tracks:
        for path in track.sources:
            read_header(path)  # what is missing or damaged is named before the work
    settings = {"data_folder": str(folder), "sources": list(sources), "seed": seed}
    settings["models"] = [str(one.folder.absolute()) for one in judges]
    kept = [folder / "stem_losses.csv" for folder in runs]
    claim_folder(out, settings, "settings.json")
    heard = heard_in(tracks, sources, out, seed)
    if not heard:
        raise DataError(
            f"{folder}: a track is judged by others; it holds one, or silence"
        )
    content, sounds_like = content_of(heard, sources)
    signals: Signals = {"content": content}
    signals |= separate_all(judges, tracks, heard.keys(), out)
    losses = [loss_signals(path) for path in kept if path.is_file()]
    for name in dict.fromkeys(name for of_run in losses for name in of_run):
        signals[name] = mean_of([of_run[name] for of_run in losses if name in of_run])
    groups = [("margin",), ("cross",), tuple(losses[0]) if losses else ()]
    judged = combine([[signals[n] for n in group if n in signals] for group in groups])
    score = {key: x + MODELS * judged.get(key, 0.0) for key, x in content.items()}
    wrong = {key: 1 / (1 + math.exp(-x)) for key, x in score.items()}
    order = sorted(score, key=lambda key: (-score[key], key))
    labels = {key: Label(round(wrong[key], 6), sounds_like[key]) for key in order}
    rows = [
        [*key, label.wrong, label.sounds_like]
        + [f"{signal[key]:.4f}" if key in signal else "" for signal in signals.values()]
        for key, label in labels.items()
    ]
    write_table(out / "audit.csv", [*COLUMNS, *signals], rows)
    keep = {
        name: sorted(t for t, stem in order if stem == name and wrong[t, stem] < 0.5)
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
    """Write the page of the worst: the stem, the mixture, and the model's estimate."""
    page = ListenPage(out)
    rows = {track.id: track for track in tracks}
    shown = list(labels)[:listen]
    for track in dict.fromkeys(track for track, _ in shown):
        fair = [one for one in judges if track not in one.trained_on] or judges
        rate = fair[0].model.sample_rate if fair else RATE
        stem_SCT = read_stems(rows[track], rate)
        est_SCT = fair[0].separate(stem_SCT.sum(0)) if fair else ()
        for number, name in enumerate(sources):
            if (track, name) not in shown:
                continue
            waves = {"mixture": stem_SCT.sum(0), f"labelled {name}": stem_SCT[number]}
            if len(est_SCT):
                waves["what the model calls so"] = est_SCT[number]
            players = [Track.of_wave(k, w.numpy(), rate) for k, w in waves.items()]
            label = labels[track, name]
            note = f"Sounds like {label.sounds_like}." if label.sounds_like else ""
            page.add(f"{track} {name}", players, note)
    given = {f"{t} {stem}": (t, stem, *label) for (t, stem), label in labels.items()}
    scores: list[dict] = [
        {"id": id_, "right": 1 - cells[2]} for id_, cells in given.items()
    ]
    names = {"right": "probably right"}
    return page.write("Audit of labels", scores, "right", names, labels=given)


def summary(labels: Mapping[Key, Label], stems: int, page: Path) -> Iterable[str]:
    """Yield lines for the console: the worst stems, and the files."""
    suspects = [key for key, label in labels.items() if label.wrong >= 0.5]
    yield f"{len(suspects)} of {len(labels)} stems are probably wrong"
    if silent := stems - len(labels):
        yield f"{silent} silent stems were not judged"
    for track, stem in list(labels)[:20]:
        label = labels[track, stem]
        like = f"sounds like {label.sounds_like}" if label.sounds_like else ""
        yield f"{label.wrong:6.2f}  {stem:<8} {track}  {like}".rstrip()
    yield f"{page.parent}/audit.csv, keep.json"
    yield f"listen       {page}"


PROGRAM = "python -m data_prep.music.audit"
main = functools.partial(run_command, PROGRAM, __doc__, {"audit": audit}, report=print)

if __name__ == "__main__":
    sys.exit(main())
