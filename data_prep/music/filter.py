"""The automatic stem filter: which stems hold what their name says.

    python -m data_prep.music.filter --data_folder=/data/sdxdb23_labelnoise \
        --checkpoint=results/htdemucs_noisy/1234 --out=clean

This is team CCOM's filter of the Sound Demixing Challenge 2023. The pitch of every stem
is raised by 6 semitones and its tempo doubled, away from what the model may remember;
then it is separated alone. The loudness of an output is 20 log10 of the sum of its
absolute samples; the margin of a stem is how far its own output rises above the loudest
other one. With `--threshold=20`, the setting of CCOM, a stem is clean if its margin is
above 20 dB. By default the margins of each stem are split in two by `split_margins`:
a model is better at one stem than at another.

Files in `--out`; the table is written after every stem, so that an interrupted run
continues, and the others at the end:

    margins.csv    a row for each stem: status, margin, loudness of each output in dB
    clean.json     {source: [track, ...]}, for `--train_stems=` of a recipe
    margins.png    a histogram of the margins for each stem
    settings.json  what the margins depend on; other settings need another folder
"""

import functools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from tqdm import tqdm

from data_prep.common.jobs import claim_folder
from data_prep.common.tracks import MissingStems
from data_prep.music.manifests import judged_tracks
from modules.audio.faults import SILENT_STEM_DB
from modules.audio.io import read_header, read_stereo
from modules.audio.pitch import change_pitch_and_tempo
from modules.audio.resample import resample
from modules.inference.songs import SongModel, apply_model
from modules.runtime.cli import run
from modules.runtime.devices import check_device
from modules.runtime.files import write_text
from modules.runtime.tables import read_table, write_table
from modules.weights.separators import load_separator

COLUMNS = ("track", "stem", "status", "margin_db")
CLEAN, MIXED, SILENT = "clean", "mixed", "silent"
MOST_BINS = 30  # of a histogram

CCOM_DB = 20.0  # team CCOM's threshold: no stem above it is called wrong
SCATTER_DB = 4.0  # of margins within a part, as if one more file lay so far off


def split_margins(margins: Sequence[float]) -> float:
    """Return the margin in dB that divides wrong from clean files of one stem.

    The margins, at most 20 dB each, are cut where two normal distributions of equal
    variance are likeliest, if these are likelier than one by the integrated complete
    likelihood (Biernacki et al., 2000): n/2 log(variance / variance within the parts)
    must exceed log n plus n times the entropy of their shares. So nine clean files stay
    together, and one far below eight (five of their standard deviations) is cut off. At
    least a third stays. Without a cut all are clean: -inf.

    >>> split_margins([-12, 4, 6, 7, 8, 10, 11]), split_margins([4, 6, 7, 8, 10, 11])
    (-4.0, -inf)
    """
    ordered = sorted(min(margin, CCOM_DB) for margin in margins)
    count = len(ordered)

    def squares(values: Sequence[float]) -> float:
        mean = math.fsum(values) / len(values)
        return math.fsum((v - mean) ** 2 for v in values) + SCATTER_DB**2

    best, threshold_db = math.log(max(count, 1)), -math.inf
    for wrong in range(1, count - math.ceil(count / 3) + 1):
        low, high = ordered[:wrong], ordered[wrong:]
        ratio = (squares(ordered) + SCATTER_DB**2) / (squares(low) + squares(high))
        gain = count / 2 * math.log(ratio)
        gain += sum(len(part) * math.log(len(part) / count) for part in (low, high))
        if gain > best:
            best, threshold_db = gain, (low[-1] + high[0]) / 2
    return threshold_db


def loudness_db(wave_SCT: Tensor) -> Tensor:
    """Return 20 log10 of the sum of absolute samples, for each source.

    >>> loudness_db(torch.full((1, 2, 8), 0.0625))
    tensor([0.])
    """
    return 20 * torch.log10(wave_SCT.abs().sum((-2, -1)).clamp(min=1e-10))


def read_stem(path: str, sample_rate: int) -> Tensor:
    """Return a stem [C, T] at a rate; one that its track lacks is a sample of 0."""
    if not path:
        return torch.zeros(2, 1)
    return resample(read_stereo(path), read_header(path).sample_rate, sample_rate)


@torch.no_grad()
def judge(
    model: SongModel,
    stem_CT: Tensor,
    name: str,
    semitones: float = 6.0,
    tempo: float = 2.0,
) -> tuple[float, dict[str, float]]:
    """Separate one stem at the model's rate, pitch and tempo changed, all alone.

    Return how far the output `name` rises above the loudest other, and the loudness of
    every output, both in dB. A `tempo` above 1 is faster.
    """
    moved_CT = change_pitch_and_tempo(stem_CT, model.sample_rate, semitones, tempo)
    mixture_BCT = moved_CT[None].to(next(model.parameters()).device)
    est_SCT = apply_model(model, mixture_BCT, shifts=1, overlap=0.25, normalize=True)[0]
    loudness = dict(zip(model.sources, loudness_db(est_SCT).tolist(), strict=True))
    others = [value for source, value in loudness.items() if source != name]
    return loudness[name] - max(others), loudness


def load_model(checkpoint: str | Path) -> SongModel:
    """Return what `load_separator` finds, in evaluation mode."""
    return cast(SongModel, load_separator(checkpoint).network)


class Margins:
    """The table of margins, kept in a folder; its columns are in order of `sources`.

    `settings` are what the margins depend on; a folder of other settings is an error.
    """

    def __init__(self, folder: Path, sources: Sequence[str], settings: dict) -> None:
        self.folder = folder
        self.sources = list(sources)
        claim_folder(folder, settings, "settings.json")
        self.table = folder / "margins.csv"
        rows = read_table(self.table, COLUMNS) if self.table.is_file() else ()
        self.rows = [row for _, row in rows]

    def add(
        self, track: str, stem: str, margin_db: float, loudness: dict[str, float]
    ) -> None:
        """Append a row and write the table whole."""
        row = {"track": track, "stem": stem, "margin_db": f"{margin_db:.3f}"}
        row |= {name: f"{value:.3f}" for name, value in loudness.items()}
        self.rows.append(row)
        self._write()

    def decide(self, threshold_db: float | None) -> dict[str, list[str]]:
        """Mark the rows; return {source: [clean tracks]}, which is kept as JSON."""
        self.thresholds = {
            name: split_margins([m for m, _, stem in self.judged() if stem == name])
            if threshold_db is None
            else threshold_db
            for name in self.sources
        }
        clean: dict[str, list[str]] = {name: [] for name in self.sources}
        for row in self.rows:
            margin_db = float(row["margin_db"])
            row["status"] = SILENT if math.isnan(margin_db) else MIXED
            if margin_db > self.thresholds[row["stem"]]:
                row["status"] = CLEAN
                clean[row["stem"]].append(row["track"])
        self._write()
        clean = {name: sorted(tracks) for name, tracks in clean.items()}
        write_text(self.folder / "clean.json", json.dumps(clean, indent=2) + "\n")
        return clean

    def _write(self) -> None:
        columns = [*COLUMNS, *self.sources]
        rows = [[row.get(name, "") for name in columns] for row in self.rows]
        write_table(self.table, columns, rows)

    def judged(self) -> list[tuple[float, str, str]]:
        """Return margin in dB, track and stem of every row but the silent."""
        return [
            (float(row["margin_db"]), row["track"], row["stem"])
            for row in self.rows
            if row["margin_db"] != "nan"
        ]

    def said(self) -> str:
        """Say where the lines are, and what to do where no stem is clean."""
        if not (known := self.judged()):
            return "every stem is silent: there was nothing to judge"
        margin, track, stem = max(known)
        if margin > self.thresholds[stem]:
            lines = [f"{name} {db:.1f} dB" for name, db in self.thresholds.items()]
            return f"clean above: {', '.join(lines)} (-inf: all)"
        return (
            f"no stem reaches {self.thresholds[stem]:g} dB; the largest margin is "
            f"{margin:.1f} dB ({stem} of {track}). The model separates too badly for "
            "it: train it longer, or leave out --threshold (the margins are kept)"
        )

    def draw(self) -> None:
        """Draw a histogram of the margins for each stem, as PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3 * len(self.sources), 2.6), layout="constrained")
        panels = figure.subplots(1, len(self.sources), sharex=True, squeeze=False)[0]
        for axes, name in zip(panels, self.sources, strict=True):
            values = [margin for margin, _, stem in self.judged() if stem == name]
            line = self.thresholds[name]
            edges = bin_edges(values, line if math.isfinite(line) else CCOM_DB)
            axes.hist(values, bins=edges, edgecolor="white", linewidth=0.5)
            if math.isfinite(line):
                axes.axvline(line, color="black", linestyle="--")
            axes.set(title=name, xlabel="margin, dB")
            axes.yaxis.get_major_locator().set_params(integer=True)
        figure.savefig(self.folder / "margins.png", dpi=120)


def bin_edges(margins: Sequence[float], threshold_db: float) -> list[float]:
    """Return edges of equal bins of a round width; one edge is the threshold.

    >>> bin_edges([-3.0, 21.5], threshold_db=20.0)[:3]
    [-3.0, -2.0, -1.0]
    >>> bin_edges([-40.0, 60.0], threshold_db=20.0)[:3]
    [-40.0, -35.0, -30.0]
    """
    low, high = min([*margins, threshold_db]), max([*margins, threshold_db])
    widths = (digit * 10.0**power for power in range(9) for digit in (1, 2, 5))
    width = next(width for width in widths if high - low <= MOST_BINS * width)
    first = math.floor((low - threshold_db) / width)
    last = math.floor((high - threshold_db) / width) + 1
    return [threshold_db + number * width for number in range(first, last + 1)]


def clean_stems(
    data_folder: str | Path,
    model: SongModel,
    out: str | Path,
    threshold_db: float | None = None,
    semitones: float = 6.0,
    tempo: float = 2.0,
    label: str = "",
    missing_stems: MissingStems = "refuse",
) -> dict[str, list[str]]:
    """Judge every stem but those of `test`; return the clean tracks of each source.

    `label` names the weights in `settings.json`; see `filter_stems` for the rest.
    """
    folder = Path(data_folder).absolute()
    tracks = judged_tracks(folder, model.sources, missing_stems)
    settings = {
        "data_folder": str(folder),
        "weights": label,
        "sources": list(model.sources),
        "semitones": semitones,
        "tempo": tempo,
    }
    margins = Margins(Path(out), model.sources, settings)
    known = {(row["track"], row["stem"]) for row in margins.rows}
    jobs = [
        (track.id, stem, path)
        for track in tracks
        for stem, path in zip(model.sources, track.sources, strict=True)
        if (track.id, stem) not in known
    ]
    total = len(known) + len(jobs)
    with tqdm(jobs, initial=len(known), total=total, desc="stems") as bar:
        for track, stem, path in bar:
            stem_CT = read_stem(path, model.sample_rate)
            if float(stem_CT.abs().mean()) < 10 ** (SILENT_STEM_DB / 20):
                margins.add(track, stem, math.nan, {})
            else:
                margins.add(track, stem, *judge(model, stem_CT, stem, semitones, tempo))
    clean = margins.decide(threshold_db)
    margins.draw()
    print(margins.said())
    return clean


def filter_stems(
    data_folder: str | Path,
    checkpoint: str | Path,
    out: Path,
    threshold: float | None = None,
    semitones: float = 6.0,
    tempo: float = 2.0,
    missing_stems: MissingStems = "refuse",
    device: str = "cpu",
) -> str:
    """Judge every stem of a data set by a trained model; return a summary.

    Arguments
    ---------
    data_folder : str | Path
        Tracks with stems.
    checkpoint : str | Path
        Folder of a run, one that export.py wrote, or published weights.
    out : Path
        Folder of the results.
    threshold : float
        Margin above which a stem is clean, in dB: 20 is CCOM's. Without it the margins
        of each stem are split in two.
    semitones, tempo : float
        Change of pitch and tempo before the separation.
    missing_stems : str
        A stem that a track lacks is an error (refuse), or silent.
    device : str
        Where to separate.
    """
    check_device(device)
    model = load_model(checkpoint).to(device)
    label = str(Path(checkpoint).absolute())
    how = threshold, semitones, tempo, label, missing_stems
    clean = clean_stems(data_folder, model, out, *how)
    lines = [f"{name:<10} {len(tracks)} clean" for name, tracks in clean.items()]
    return "\n".join([*lines, f"{out}/clean.json, margins.csv, margins.png"])


PROGRAM = "python -m data_prep.music.filter"
main = functools.partial(run, PROGRAM, __doc__, {"filter": filter_stems}, report=print)

if __name__ == "__main__":
    sys.exit(main())
