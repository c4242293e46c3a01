"""Measure how much of the gap between wrong and true labels each training closes.

    OMP_NUM_THREADS=1 python -m benchmarks.gap --out=/tmp/gap --jobs=2 \
        -- --examples_per_epoch=400 [--device=cuda --cuda_graphs=True]

Makes four sets of the same 60 synthesised songs: labels all true, a fifth or two fifths
of the stems wrong, and two fifths bleeding (all other stems leak into them at -18 to
-6 dB). Audits each. Then trains on each set, for every seed,

- one network for every rule of truncation, and for labels that the audit or the truth
  calls wrong (left out, or weighted), all on the same batches
  (`benchmarks/truncation_rules.yaml`),
- one on nothing but the stems that the truth calls clean, and one on what the audit
  keeps, each stem drawn from another song; for comparison one so on everything,

and tests all on 20 songs with true labels. What follows `--` goes to every training;
the same command again goes on where it was stopped.

A score is the mean nSDR over the songs; the gain over `none`, plain training on the
same set, is paired by song, after the mean over the seeds, with the 95 % interval of
Student's t over the songs. The gap is between `none` on the set and `none` on true
labels; the part of it that is closed has the interval of 2 000 bootstraps of the songs.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from scipy import stats

from benchmarks.duel import parse
from benchmarks.pairs import ROOT
from data_prep.music.audit import audit
from data_prep.music.manifests import SOURCES
from data_prep.synthetic.songs import Parameters, generate
from modules.data.labels import COLUMNS, read_labels
from modules.runtime.cli import as_command
from modules.runtime.errors import DataError
from modules.runtime.files import write_text
from modules.runtime.tables import read_table, write_table

RATE, SEED = 22050, 15
# the probability that an instrument is in a wrong stem; two stems are wrong then
WRONG = {"true": 0.0, "a fifth wrong": 0.09, "two fifths wrong": 0.17}
BLEEDING, BLEEDS, LEAK_DB = "two fifths bleeding", 0.4, (-18.0, -6.0)
SETS = (*WRONG, BLEEDING)
RULES = ("none", "ccom", "pooled", "running", "frames", "dropping", "soft")
RULES += ("coteaching",)
JUDGED = {"audit_drop": ("drop", "audit"), "audit_weight": ("weight", "audit")}
JUDGED |= {"truth_drop": ("drop", "truth")}
# each stem from another song, of those that a table keeps
PARTS = ("all, stems apart", "audit's clean, apart", "truth's clean, apart")
TABLE = "test_results.csv"
SETTINGS = [
    f"--sample_rate={RATE}",
    "--batch_size=4",
    "--relative_to_level=True",
    "--frame_seconds=0.5",
    "--loss_memory=400",
    "--lr_scheduler={epochs: [3, 4, 2], lr: [0.002, 0.002, 0.0007], "
    "quantile: [1.0, 0.7, 0.7]}",
    *("--valid_tracks=0", "--valid_every=0", "--metrics=[nsdr]", "--shifts=0"),
    *("--n_audio_to_save=0", "--log_every=50", "--experiment_name=gap"),
]


# ------------------------------------------------------------------------ the sets


def make_set(out: Path, name: str) -> None:
    """Make a set and, when it is whole, the table of its wrong stems."""
    folder = out / name
    songs = Parameters(RATE, SEED, 60, 4, 20, noise_probability=WRONG.get(name, 0.0))
    generate(folder / "songs", songs)
    if (folder / "truth.csv").is_file():
        return
    if name == BLEEDING:
        wrong = leak(folder / "songs" / "label_noise", stems_of(out, name))
    else:
        rows = read_table(folder / "songs" / "label_noise_truth.csv", ("is_clean",))
        wrong = {(r["track"], r["stem"]): r["is_clean"] == "0" for _, r in rows}
    table = [(*key, int(value), "") for key, value in sorted(wrong.items())]
    write_table(folder / "truth.csv", COLUMNS, table)


def stems_of(out: Path, name: str) -> Path:
    """Return the folder of a set's tracks."""
    return out / name / ("bleeding" if name == BLEEDING else "songs/label_noise")


def leak(clean: Path, out: Path) -> dict[tuple[str, str], bool]:
    """Write the tracks with stems that bleed; say which do."""
    shutil.rmtree(out, ignore_errors=True)
    bleeds = {}
    for track in sorted(clean.iterdir()):
        rng = np.random.default_rng([SEED, uuid.UUID(track.name).int])
        waves = {s: soundfile.read(track / f"{s}.wav")[0] for s in SOURCES}
        (out / track.name).mkdir(parents=True)
        for stem, wave in waves.items():
            draw = rng.random()
            gains = 10 ** (rng.uniform(*LEAK_DB, len(waves)) / 20)
            bleeds[track.name, stem] = bool(draw < BLEEDS)
            for gain, (other, leaking) in zip(gains, waves.items(), strict=True):
                if draw < BLEEDS and other != stem:
                    wave = wave + gain * leaking
            path = out / track.name / f"{stem}.wav"
            soundfile.write(path, np.clip(wave, -1, 1 - 2**-15), RATE)
    return bleeds


def make_audit(out: Path, name: str) -> None:
    """Audit a set, unless that is done."""
    folder = out / name / "audit"
    if not (folder / "audit.csv").is_file():
        audit(stems_of(out, name), folder, [], listen=1, seed=0)


# ------------------------------------------------------------------------ trainings


def trainings(out: Path, name: str, seed: int) -> dict[str, list[str]]:
    """Return the command lines of a set and seed, by the folder of the run."""
    folder = out / name
    tables = {"audit": folder / "audit" / "audit.csv", "truth": folder / "truth.csv"}
    clean = name == "true"  # where the truth calls nothing wrong
    judged = {k: v for k, v in JUDGED.items() if not (clean and v[1] == "truth")}
    trusted = ", ".join(
        f"{k}: [{action}, '{tables[table]}']" for k, (action, table) in judged.items()
    )
    common = [
        f"--data_folder={stems_of(out, name)}",
        f"--test_folder={out / 'true' / 'songs' / 'clean' / 'test'}",
        f"--seed={seed}",
        *SETTINGS,
    ]
    lines = {
        "rules": [
            *common,
            f"--rules={list((*RULES, *judged))}".replace("'", ""),
            f"--trusted={{{trusted}}}",
        ]
    }
    for part in PARTS:
        if clean and part.startswith("truth"):
            continue
        lines[part] = [*common, "--rules=[none]", "--independent=True"]
        judge = part.split("'")[0]
        if judge in tables:
            lines[part].append(f"--labels={tables[judge]}")
    return {str(folder / f"{k} {seed}"): line for k, line in lines.items()}


def run(folder: str, line: Sequence[str], further: Sequence[str]) -> None:
    """Train and test, unless that is done; what it printed stays in `FOLDER.log`."""
    if (Path(folder) / TABLE).is_file():
        return
    command = [sys.executable, "train.py", "benchmarks/truncation_rules.yaml", *line]
    command += [*further, f"--output_folder={folder}", "--noprogressbar"]
    with open(f"{folder}.log", "w", encoding="utf-8") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise DataError(f"{folder}.log: the training ended with {done.returncode}")
    print(f"{folder}: done", flush=True)


# ------------------------------------------------------------------------ the table


def scores_of(folder: Path, seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """Return each way's nSDR by song, the mean over the seeds, of a set."""
    by_way: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        for part in ("rules", *PARTS):
            path = folder / f"{part} {seed}" / TABLE
            if not path.is_file():  # the truth calls nothing wrong in the first set
                continue
            rows = [row for _, row in read_table(path, ("id",))]
            for column in rows[0]:
                way = column.removeprefix("nsdr_")
                if part != "rules":
                    way = part if way == "none" else ""
                if column.startswith("nsdr_") and way in (*RULES, *JUDGED, *PARTS):
                    found = {row["id"]: float(row[column]) for row in rows}
                    by_way.setdefault(way, []).append(found)
    return {
        way: np.mean([[one[song] for song in sorted(runs[0])] for one in runs], axis=0)
        for way, runs in by_way.items()
    }


def interval(values: np.ndarray) -> str:
    """Return a mean and the half of its 95 % interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{values.mean():+.2f} ± {half:.2f}"


def closed(gain: np.ndarray, gap: np.ndarray) -> str:
    """Return the part of the gap that a gain closes, with its interval, in per cent."""
    rng = np.random.default_rng(0)
    picks = rng.integers(len(gain), size=(2000, len(gain)))
    drawn = 100 * gain[picks].mean(1) / gap[picks].mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{100 * gain.mean() / gap.mean():.0f} % ({low:.0f} to {high:.0f})"


def table(out: Path, seeds: Sequence[int]) -> list[str]:
    """Return lines of markdown: a table for each set."""
    true = scores_of(out / "true", seeds)["none"]
    lines = []
    for name in SETS:
        found = scores_of(out / name, seeds)
        labels = read_labels(out / name / "truth.csv").values()
        share = statistics.mean(label.wrong for label in labels)
        has_gap = name != "true"
        lines += [f"**{name}** ({100 * share:.0f} % of the stems)", ""]
        lines += ["| training | nSDR, dB | gain over `none` | gap closed |"]
        lines += ["|---|---|---|---|"]
        for way, score in found.items():
            gain = score - found["none"]
            cells = [way, f"{score.mean():.2f}", interval(gain) if gain.any() else ""]
            is_part = has_gap and gain.any()
            cells.append(closed(gain, true - found["none"]) if is_part else "")
            lines.append(f"| {' | '.join(cells)} |")
        if has_gap:
            gap = interval(true - found["none"])
            lines.append(f"| true labels | {true.mean():.2f} | {gap} | 100 % |")
        lines.append("")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gap",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True)
    add("--jobs", type=int, default=1, help="trainings at once")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add("--prepare_only", action="store_true", help="make the sets and audit them")
    options, further = parse(parser, arguments)
    out = options.out.absolute()
    for name in SETS:
        make_set(out, name)
    for name in SETS:
        make_audit(out, name)
    if options.prepare_only:
        return
    lines = {
        folder: line
        for seed in options.seeds
        for name in SETS
        for folder, line in trainings(out, name, seed).items()
    }
    longest_first = sorted(lines, key=lambda folder: "/rules " not in folder)
    with ThreadPoolExecutor(options.jobs) as pool:
        done = [pool.submit(run, f, lines[f], further) for f in longest_first]
        for future in done:
            future.result()
    text = "\n".join(table(out, options.seeds))
    write_text(out / "gap.md", text)
    print(text)


if __name__ == "__main__":
    sys.exit(as_command(main))
