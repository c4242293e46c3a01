"""The automatic stem filter: which stems hold what their name says.

    python -m data_prep.music.filter --data_folder=/data/sdxdb23_labelnoise \
        --checkpoint=results/htdemucs_noisy/1234 --out=clean

Team CCOM's filter of the Sound Demixing Challenge 2023. Every stem file is moved away
from what the model may remember (pitch + 6 semitones, tempo x 2) and separated alone.
The loudness of an output is 20 log10 of the sum of its absolute samples; the stem is
called clean when its own output is more than 20 dB louder than every other one.

Written into `--out`, the table after every stem, so that an interrupted run continues,
the status, the list and the picture at the end:

    margins.csv   a row per stem: status, margin, loudness of every output, in dB
    clean.json    {source: [track, ...]}, what `--train_stems=` of a recipe takes
    margins.png   a histogram of the margins for each stem
    settings.json what the margins depend on; a run with other settings is refused
"""

import argparse
import csv
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import soundfile
import torch
from torch import Tensor, nn
from tqdm import tqdm

from data_prep.music.manifests import find_tracks
from modules.audio.io import read_stereo
from modules.audio.pitch import change_pitch_and_tempo
from modules.audio.resample import resample
from modules.inference.songs import apply_model
from modules.runtime.devices import check_device
from modules.runtime.errors import AudioError, DataError, HparamsError, PretrainedError
from modules.runtime.files import one_line, write_text
from modules.weights.pretrained import load_pretrained
from recipes.config.load import load_hparams

SILENCE_DB = -80.0  # of the mean absolute sample; a stem below has nothing to judge

CLEAN, MIXED, SILENT = "clean", "mixed", "silent"

MOST_BINS = 30  # of a histogram

INTERRUPTED = 130  # the exit status that shells give to Ctrl-C


def loudness_db(wave_SCT: Tensor) -> Tensor:
    """20 log10 of the sum of absolute samples, for each source.

    Example
    -------
    >>> loudness_db(torch.full((1, 2, 8), 0.0625))
    tensor([0.])
    """
    return 20 * torch.log10(wave_SCT.abs().sum((-2, -1)).clamp(min=1e-10))


@torch.no_grad()
def judge(
    model: nn.Module,
    stem_CT: Tensor,
    name: str,
    semitones: float = 6.0,
    tempo: float = 2.0,
) -> tuple[float, dict[str, float]]:
    """How far a stem's own output rises above all others when it is separated alone.

    Arguments
    ---------
    model : nn.Module
        With `sources`, `samplerate` and `segment`, see `modules.inference.songs`.
    stem_CT : Tensor
        One stem at the model's rate, [C, T].
    name : str
        What it is said to be, one of the model's sources.
    semitones, tempo : float
        Change made before the separation: up in pitch, faster above 1.

    Returns
    -------
    margin_db : float
        Loudness of its own output less that of the loudest other.
    loudness : dict[str, float]
        Of every output, in dB.
    """
    moved_CT = change_pitch_and_tempo(stem_CT, model.samplerate, semitones, tempo)
    device = next(model.parameters()).device
    est_SCT = apply_model(
        model, moved_CT[None].to(device), shifts=1, overlap=0.25, normalize=True
    )[0]
    loudness = dict(zip(model.sources, loudness_db(est_SCT).tolist(), strict=True))
    others = [value for source, value in loudness.items() if source != name]
    return loudness[name] - max(others), loudness


def load_model(checkpoint: str | Path, hparams_file: str | None = None) -> nn.Module:
    """The network of a run, with its weights.

    Arguments
    ---------
    checkpoint : str | Path
        The run's folder; or any folder that `--pretrained` takes.
    hparams_file : str | None
        YAML that names the network; None takes the run's own `hyperparams.yaml`.

    Raises
    ------
    HparamsError, PretrainedError
        The YAML or the weights are missing or unusable.
    """
    path = Path(hparams_file or Path(checkpoint) / "hyperparams.yaml")
    if not path.is_file():
        raise HparamsError(
            f"{path}: no such file; --checkpoint is the folder of a run, or say by "
            "--hparams=FILE.yaml which network the weights are for"
        )
    hparams, _ = load_hparams(path, {"data_folder": "none"})
    model = hparams["separator"]
    load_pretrained(model, checkpoint)
    return model.eval()


class Margins:
    """The table of margins, kept on disk.

    Arguments
    ---------
    folder : Path
        Where the files go.
    sources : Sequence[str]
        Stems, in the order of the columns.
    settings : dict
        What the margins depend on.

    Raises
    ------
    DataError
        The folder holds margins that were made with other settings.
    """

    def __init__(self, folder: Path, sources: Sequence[str], settings: dict) -> None:
        self.folder = folder
        self.sources = list(sources)
        self.columns = ["track", "stem", "status", "margin_db", *self.sources]
        folder.mkdir(parents=True, exist_ok=True)
        known = folder / "settings.json"
        if known.is_file():
            before = json.loads(known.read_text(encoding="utf-8"))
            changed = sorted(
                name
                for name in before.keys() | settings.keys()
                if before.get(name) != settings.get(name)
            )
            if changed:
                raise DataError(
                    f"{folder} holds margins made with another {', '.join(changed)}; "
                    "give another --out, or remove it"
                )
        write_text(known, json.dumps(settings, indent=2) + "\n")
        self.rows = read_rows(folder)

    def known(self) -> set[tuple[str, str]]:
        """(track, stem) of the rows there are."""
        return {(row["track"], row["stem"]) for row in self.rows}

    def add(
        self, track: str, stem: str, margin_db: float, loudness: dict[str, float]
    ) -> None:
        """Append a row and write the table whole."""
        row = {"track": track, "stem": stem, "margin_db": f"{margin_db:.3f}"}
        row |= {name: f"{value:.3f}" for name, value in loudness.items()}
        self.rows.append(row)
        self.write_csv()

    def decide(self, threshold_db: float) -> dict[str, list[str]]:
        """Mark the rows by the threshold; {source: [clean tracks]}, also as JSON."""
        clean: dict[str, list[str]] = {name: [] for name in self.sources}
        for row in self.rows:
            margin = row["margin_db"]
            row["status"] = (
                SILENT
                if margin == "nan"
                else CLEAN
                if float(margin) > threshold_db
                else MIXED
            )
            if row["status"] == CLEAN:
                clean[row["stem"]].append(row["track"])
        self.write_csv()
        clean = {name: sorted(tracks) for name, tracks in clean.items()}
        write_text(self.folder / "clean.json", json.dumps(clean, indent=2) + "\n")
        return clean

    def write_csv(self) -> None:
        """Write all rows in one atomic step."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.folder / "margins.csv", text.getvalue())

    def draw(self, threshold_db: float) -> Path:
        """A histogram of the margins for each stem, as PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3 * len(self.sources), 2.6), layout="constrained")
        panels = figure.subplots(1, len(self.sources), sharex=True, squeeze=False)[0]
        edges = bin_edges([margin for margin, *_ in judged(self.rows)], threshold_db)
        for axes, name in zip(panels, self.sources, strict=True):
            values = [margin for margin, _, stem in judged(self.rows) if stem == name]
            axes.hist(values, bins=edges, edgecolor="white", linewidth=0.5)
            axes.axvline(threshold_db, color="black", linestyle="--")
            axes.set(title=name, xlabel="margin, dB")
            axes.yaxis.get_major_locator().set_params(integer=True)
        path = self.folder / "margins.png"
        figure.savefig(path, dpi=120)
        return path


def read_rows(folder: Path) -> list[dict[str, str]]:
    """Rows of the `margins.csv` in a folder; none without it."""
    table = folder / "margins.csv"
    if not table.is_file():
        return []
    with open(table, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def judged(rows: Sequence[Mapping[str, str]]) -> list[tuple[float, str, str]]:
    """Margin in dB, track and stem of every row but the silent."""
    return [
        (float(row["margin_db"]), row["track"], row["stem"])
        for row in rows
        if row["margin_db"] != "nan"
    ]


def hint(rows: Sequence[Mapping[str, str]], threshold_db: float) -> str:
    """What to do where no stem is clean."""
    known = judged(rows)
    if not known:
        return "every stem is silent: there was nothing to judge"
    margin, track, stem = max(known)
    return (
        f"no stem reaches {threshold_db:g} dB; the largest margin is {margin:.1f} dB "
        f"({stem} of {track}). The model separates too badly for this margin: train it "
        "longer, or lower --threshold (the margins are kept)"
    )


def bin_edges(margins: Sequence[float], threshold_db: float) -> list[float]:
    """Edges of equal bins, of a round width, for all histograms; one at the threshold.

    Example
    -------
    >>> bin_edges([-3.0, 21.5], threshold_db=20.0)[:3]
    [-3.0, -2.0, -1.0]
    >>> bin_edges([-40.0, 60.0], threshold_db=20.0)[:3]
    [-40.0, -35.0, -30.0]
    """
    low = min([*margins, threshold_db])
    high = max([*margins, threshold_db])
    decades = (10.0**power for power in range(9))
    widths = (digit * decade for decade in decades for digit in (1, 2, 5))
    width = next(width for width in widths if high - low <= MOST_BINS * width)
    first = math.floor((low - threshold_db) / width)
    last = math.floor((high - threshold_db) / width) + 1
    return [threshold_db + number * width for number in range(first, last + 1)]


def clean_stems(
    data_folder: str | Path,
    model: nn.Module,
    out: str | Path,
    threshold_db: float = 20.0,
    semitones: float = 6.0,
    tempo: float = 2.0,
    label: str = "",
) -> dict[str, list[str]]:
    """Judge every stem of a data set; see the module's docstring.

    Arguments
    ---------
    data_folder : str | Path
        Tracks in a layout that `data_prep.music` knows; all but `test` are judged.
    model : nn.Module
        The separator.
    out : str | Path
        Folder of the results.
    threshold_db, semitones, tempo : float
        CCOM's are 20, 6 and 2.
    label : str
        Says which weights these are, for `settings.json`.

    Returns
    -------
    dict[str, list[str]]
        The clean tracks of each source.
    """
    folder = Path(data_folder).absolute()
    # None need be held out, of which a single track would be too few.
    hold_out = None if (folder / "valid").is_dir() else 0
    found = find_tracks(folder, model.sources, hold_out)
    tracks = sorted([*found["train"], *found.get("valid", ())], key=lambda t: t.name)
    settings = {
        "data_folder": str(folder),
        "weights": label,
        "sources": list(model.sources),
        "semitones": semitones,
        "tempo": tempo,
    }
    margins = Margins(Path(out), model.sources, settings)
    known = margins.known()
    jobs = [
        (track.name, stem, path)
        for track in tracks
        for stem, path in zip(model.sources, track.sources, strict=True)
        if (track.name, stem) not in known
    ]
    for track, stem, path in tqdm(
        jobs, initial=len(known), total=len(known) + len(jobs), desc="stems"
    ):
        stem_CT, rate = read_any_rate(path)
        stem_CT = resample(stem_CT, rate, model.samplerate)
        level = float(stem_CT.abs().mean())
        if level < 10 ** (SILENCE_DB / 20):
            margins.add(track, stem, float("nan"), {})
            continue
        margins.add(track, stem, *judge(model, stem_CT, stem, semitones, tempo))
    clean = margins.decide(threshold_db)
    margins.draw(threshold_db)
    return clean


def read_any_rate(path: str | Path) -> tuple[Tensor, int]:
    """A whole file [C, T] and its rate in Hz."""
    try:
        rate = soundfile.info(str(path)).samplerate
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path}: cannot be read as audio ({error})") from error
    return read_stereo(path), rate


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the filter from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.music.filter",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data_folder", required=True, help="tracks with stems")
    add("--checkpoint", required=True, help="folder of a run, or of weights")
    add("--out", required=True, help="folder of the results")
    add("--hparams", help="YAML that names the network (default: the run's own)")
    add("--threshold", type=float, default=20.0, help="dB")
    add("--semitones", type=float, default=6.0)
    add("--tempo", type=float, default=2.0)
    add("--device", default="cpu")
    options = parser.parse_args(arguments)
    try:
        check_device(options.device)
        model = load_model(options.checkpoint, options.hparams).to(options.device)
        clean = clean_stems(
            options.data_folder,
            model,
            options.out,
            options.threshold,
            options.semitones,
            options.tempo,
            label=str(Path(options.checkpoint).absolute()),
        )
    except (AudioError, DataError, HparamsError, PretrainedError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
    except KeyboardInterrupt:
        print("\nstopped; the same command continues", file=sys.stderr)
        sys.exit(INTERRUPTED)
    for name, tracks in clean.items():
        print(f"{name:<10} {len(tracks)} clean")
    if not any(clean.values()):
        print(hint(read_rows(Path(options.out)), options.threshold))
    print(f"{options.out}/clean.json, margins.csv, margins.png")


if __name__ == "__main__":
    main()
