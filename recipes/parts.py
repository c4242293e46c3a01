"""A training in parts that follow each other, as one command that can be resumed.

A part is an ordinary run in a folder of its own (`recipe`; `stems` are what a judgement
kept, `start` is a run whose weights it begins with, all else are settings), a judgement
of the data by such a run, or the bag of several:

    parts:
        noisy: !apply:recipes.parts.part {recipe: htdemucs_noisy.yaml}
        judge: !apply:recipes.parts.part {judges: noisy}
        clean: !apply:recipes.parts.part {recipe: htdemucs_filtered.yaml, stems: judge}
        bag: !apply:recipes.parts.part {bag: {drums: clean, bass: noisy}}

`report.csv` and `report.md` have a row for each part that has ended; the same command
continues with the next one. A judgement runs on the main process.
"""

import gc
import json
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from speechbrain.utils.run_opts import RunOptions

from modules.runtime import distributed
from modules.runtime.errors import HparamsError
from modules.runtime.files import write_text
from modules.runtime.run_lock import RunLock
from modules.runtime.tables import read_table, write_table
from modules.weights.stated import nodes_of, plain

logger = logging.getLogger(__name__)

FIXED = ("part", "mean", "command")
KEPT = ("clean.json", "keep.json")  # what the filter and the audit write


def part(**settings: Any) -> dict[str, Any]:
    """Return a part's settings, of which a command line may name any."""
    return settings


class Parts:
    """Runs the parts of a YAML file; `train` is `train.main`, which runs one."""

    def __init__(
        self,
        train: Callable[[Sequence[str]], dict | None],
        arguments: Sequence[str],
        hparams: Mapping[str, Any],
        run_opts: RunOptions,
    ) -> None:
        for name in ("debug", "test_only"):
            if getattr(run_opts, name):  # it would count as the whole part
                raise HparamsError(
                    f"--{name}: {arguments[0]} runs parts that build on each other, "
                    f"each in full; give --{name} to the recipe of one of them"
                )
        self.train, self.hparams = train, hparams
        timeout, self.parts = hparams["ddp_timeout"], hparams["parts"]
        self.run_opts = distributed.init_process_group(run_opts, timeout)
        self.folder = Path(hparams["output_folder"])
        self.place = Path(arguments[0]).parent  # of the recipes
        self.options: list[str] = []  # SpeechBrain's, for every run
        is_own = True
        for token in arguments[1:]:
            is_new = token.startswith("--")
            is_own = token[2:].partition("=")[0] in hparams if is_new else is_own
            self.options += [] if is_own else [token]
        self.rows: dict[str, dict[str, str]] = {}

    def run(self) -> None:
        """Run what has not ended yet, or the part that is asked for."""
        only, judge = self.hparams["part"], self.hparams["judge"]
        chosen = [n for n in self.parts if only in (None, n, n.partition("/")[0])]
        if not chosen or judge not in self.hparams["judges"]:
            known = ", ".join([*self.parts, *self.hparams["judges"]])
            raise HparamsError(f"part={only}, judge={judge}: there are {known}")
        with RunLock(self.folder):
            if self.hparams["prepare"] is not None:
                distributed.run_on_main(self.hparams["prepare"])
            self.rows = distributed.run_on_main(self._read)
            for name in chosen:
                self._run(name)
        report = self.folder / "report.md"
        distributed.run_on_main(lambda: print(report.read_text(encoding="utf-8")))

    def _run(self, name: str) -> None:
        """Run a part unless its row has the same command; write the report."""
        action, given = self._plan(name, dict(self.parts[name]))
        command = json.dumps(given)
        if self.rows.get(name, {}).get("command") == command:
            return
        names = [n for n in self.parts if n == name or n in self.rows]
        if later := names[names.index(name) + 1 :]:
            logger.warning(
                f"{name} runs again, unlike what was made of it: remove the folders of "
                f"{', '.join(later)} and {self.folder}/report.csv to make them anew"
            )
        row = action(**given)
        gc.collect()  # the network of the part is in reference cycles
        self.rows[name] = {"part": name, "command": command, **row}
        distributed.run_on_main(self._write)

    def _plan(self, name: str, spec: dict) -> tuple[Callable[..., dict], dict]:
        """Return the method that runs a part, and its arguments."""
        common = {"data_folder": self.hparams["data_folder"]}
        if "bag" in spec:
            return self._bag, {s: self._ended(one) for s, one in spec["bag"].items()}
        if "judges" in spec:
            checkpoint, kind = self._ended(spec["judges"]), self.hparams["judge"]
            out = str(self.folder / name / kind)
            return self._judge, common | {"checkpoint": checkpoint, "out": out}
        common |= {key: self.hparams[key] for key in ("seed", "test_folder")}
        common["output_folder"] = str(self.folder / name)
        if (limit := self.run_opts.optimizer_step_limit) is not None:
            common["optimizer_step_limit"] = limit  # in the command: not in full
        if "start" in spec:
            common["pretrained"] = self._ended(spec.pop("start"))
        if "stems" in spec:
            folder = self._ended(spec.pop("stems")) + f"/{self.hparams['judge']}"
            common["train_stems"] = str(_kept(folder))
        return self._train, common | self.hparams["settings"] | spec

    def _ended(self, name: str) -> str:
        """Return the folder of a part that must have ended."""
        if name not in self.rows:
            raise HparamsError(f"part {name} has not ended in {self.folder}: run it")
        return str(self.folder / name)

    def _train(self, recipe: str, **settings: Any) -> dict[str, str]:
        """Run a recipe; return the nSDR of its test, of each stem and the mean."""
        given = [f"--{key}={json.dumps(value)}" for key, value in settings.items()]
        summary = self.train([str(self.place / recipe), *given, *self.options])
        scores = {}
        for name, entry in (summary["metrics"] if summary else {}).items():
            metric, _, stem = name.partition("_")
            if metric == "nsdr" and entry["mean"] is not None:
                scores[stem or "mean"] = f"{entry['mean']:.2f}"
        return scores

    def _judge(self, out: str, **given: Any) -> dict[str, str]:
        """Judge the data; return how many tracks of each stem are kept."""
        judge = self.hparams["judges"][self.hparams["judge"]]
        best = torch.accelerator.current_accelerator(check_available=True)
        given["device"] = self.run_opts.device or str(best or "cpu")
        distributed.run_on_main(lambda: print(judge(out=Path(out), **given)))
        stems = json.loads(_kept(out).read_text(encoding="utf-8"))
        return {stem: f"{len(tracks)} kept" for stem, tracks in stems.items()}

    def _bag(self, **folders: str) -> dict[str, str]:
        """Write the list of models, each for its stem; their scores are the bag's."""
        names = {s: str(Path(f).relative_to(self.folder)) for s, f in folders.items()}
        settings = Path(next(iter(folders.values()))) / "hyperparams.yaml"
        sources = plain(nodes_of(settings).get("sources"), str(settings))
        weights = [[float(source == stem) for source in sources] for stem in names]
        bag = yaml.safe_dump({"models": [*names.values()], "weights": weights})
        distributed.run_on_main(write_text, self.folder / "bag.yaml", bag)
        scores = {stem: self.rows[name].get(stem, "") for stem, name in names.items()}
        if all(scores.values()):
            scores["mean"] = f"{statistics.fmean(map(float, scores.values())):.2f}"
        return scores

    def _read(self) -> dict[str, dict[str, str]]:
        path = self.folder / "report.csv"
        table = read_table(path, FIXED) if path.is_file() else ()
        return {row["part"]: row for _, row in table}

    def _write(self) -> None:
        """Write both reports, the parts in their order."""
        rows = [self.rows[name] for name in self.parts if name in self.rows]
        stems = dict.fromkeys(key for row in rows for key in row if key not in FIXED)
        columns = ["part", *stems, "mean", "command"]
        table = [[row.get(name, "") for name in columns] for row in rows]
        lines = [columns, ["---"] * len(columns), *table]
        text = "\n".join(f"| {' | '.join(cells[:-1])} |" for cells in lines)
        notes = "Scores: nSDR in dB on the test songs; a bag has those of its models."
        title = f"# {self.hparams['experiment_name']}"
        write_text(self.folder / "report.md", f"{title}\n\n{text}\n\n{notes}\n")
        write_table(self.folder / "report.csv", columns, table)


def _kept(folder: str) -> Path:
    """Return the file of the stems that a judgement kept."""
    found = [path for name in KEPT if (path := Path(folder) / name).is_file()]
    if not found:
        raise HparamsError(f"{folder}: the data were not judged; run that part first")
    return found[0]
