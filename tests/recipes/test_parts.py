"""The parts of a training: their order, what each is given, resuming, the report."""

import json
from pathlib import Path

import pytest
import yaml

from modules.runtime.errors import HparamsError
from modules.runtime.signals import StopRun
from recipes.config.load import load
from recipes.parts import Parts

TEXT = """
experiment_name: path
seed: 7
output_folder: !PLACEHOLDER
data_folder: songs
test_folder: null
prepare: null
ddp_timeout: 60
part: null
judge: filter
judges:
    filter: !name:tests.recipes.test_parts.judge_by
        name: clean.json
    audit: !name:tests.recipes.test_parts.judge_by
        name: keep.json
settings: !apply:recipes.parts.part
parts:
    noisy: !apply:recipes.parts.part {recipe: noisy.yaml, lr_scheduler: {epochs: [3]}}
    judge: !apply:recipes.parts.part {judges: noisy}
    tune/low: !apply:recipes.parts.part {recipe: b.yaml, start: noisy, stems: judge}
    tune/high: !apply:recipes.parts.part {recipe: b.yaml, start: noisy, stems: judge}
    bag: !apply:recipes.parts.part {bag: {low: tune/low, high: tune/high}}
"""
RUN = "sources: [low, high]\n"


def judge_by(name, data_folder, checkpoint, out, device):
    out.mkdir(parents=True, exist_ok=True)
    (out / name).write_text(json.dumps({"low": ["a", "b"], "high": ["a"]}))
    return f"judged {data_folder} by {Path(checkpoint).name} on {device}"


class Path_:
    """Runs the file's command lines with a stand-in for `train.main`."""

    def __init__(self, folder: Path) -> None:
        self.file, self.out = folder / "path.yaml", folder / "out"
        self.file.write_text(TEXT)
        self.calls: list[dict[str, str]] = []
        self.stop_at = ""

    def train(self, arguments):
        recipe, *options = arguments
        pairs = (o.removeprefix("--").partition("=") for o in options)
        given = {name: value for name, _, value in pairs}
        folder = Path(json.loads(given["output_folder"]))
        self.calls.append(given | {"recipe": Path(recipe).name, "name": folder.name})
        if folder.name == self.stop_at:
            raise StopRun("stopped")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hyperparams.yaml").write_text(RUN)
        scores = {"nsdr": 1.0, "nsdr_low": len(self.calls), "nsdr_high": None}
        if folder.name == "high":
            scores["nsdr_high"] = 0.5
        return {"metrics": {name: {"mean": value} for name, value in scores.items()}}

    def run(self, *options: str) -> list[str]:
        """Return the names of the runs that were started."""
        before = len(self.calls)
        arguments = [str(self.file), f"--output_folder={self.out}", *options]
        run_opts, hparams, _ = load(arguments)
        Parts(self.train, arguments, hparams, run_opts).run()
        return [call["name"] for call in self.calls[before:]]


@pytest.fixture
def path(tmp_path):
    return Path_(tmp_path)


def test_parts_follow_each_other_and_their_results_are_in_one_report(path, capsys):
    options = "--settings={num_workers: 2}", "--device=cpu", "--noprogressbar"
    assert path.run(*options) == ["noisy", "low", "high"]
    first, low, _ = path.calls
    assert (
        first["recipe"] == "noisy.yaml" and first["lr_scheduler"] == '{"epochs": [3]}'
    )
    assert first["num_workers"] == low["num_workers"] == "2" and first["seed"] == "7"
    assert first["device"] == "cpu" and "noprogressbar" in low
    assert "train_stems" not in first and "part" not in first
    assert json.loads(low["train_stems"]) == str(path.out / "judge/filter/clean.json")
    assert json.loads(low["pretrained"]) == str(path.out / "noisy")
    bag = yaml.safe_load((path.out / "bag.yaml").read_text())
    assert bag == {"models": ["tune/low", "tune/high"], "weights": [[1, 0], [0, 1]]}
    lines = (path.out / "report.md").read_text().splitlines()
    assert lines[2] == "| part | low | high | mean |" and len(lines) == 11
    assert "| judge | 2 kept | 1 kept |  |" in lines
    assert "| bag | 2.00 | 0.50 | 1.25 |" in lines
    printed = capsys.readouterr().out
    assert "judged songs by noisy on cpu" in printed and lines[-3] in printed


def test_the_same_command_continues_where_it_was_stopped(path):
    path.stop_at = "low"
    with pytest.raises(StopRun):
        path.run()
    assert not (path.out / "bag.yaml").exists()
    path.stop_at = ""
    assert path.run() == ["low", "high"]
    assert path.run() == []


def test_a_part_alone_needs_those_before_it(path):
    with pytest.raises(HparamsError, match="part noisy has not ended in .*: run it"):
        path.run("--part=tune")
    assert path.run("--part=noisy") == ["noisy"]
    with pytest.raises(HparamsError, match="part judge has not ended"):
        path.run("--part=tune")
    path.run("--part=judge")
    assert path.run("--part=tune") == ["low", "high"]
    with pytest.raises(HparamsError, match="part=end, .* there are noisy, judge, tun"):
        path.run("--part=end")
    with pytest.raises(HparamsError, match="judge=ear: there are .*filter, audit"):
        path.run("--judge=ear")


def test_a_changed_part_runs_again_and_says_what_does_not(path, caplog):
    path.run()
    assert path.run("--parts={tune/high: {lr: 0.5}}") == ["high"]
    assert path.calls[-1]["lr"] == "0.5"
    assert "tune/high runs again, unlike what was made of it: remove" in caplog.text


def test_another_judge_writes_a_folder_of_its_own(path):
    path.run("--part=noisy")
    path.run("--judge=audit")
    stems = str(path.out / "judge" / "audit" / "keep.json")
    assert json.loads(path.calls[-1]["train_stems"]) == stems
    with pytest.raises(HparamsError, match="filter: the data were not judged"):
        path.run("--part=tune")


@pytest.mark.parametrize("option", ["debug", "test_only"])
def test_a_trial_of_parts_is_refused_before_anything_is_written(path, option):
    with pytest.raises(HparamsError, match=f"--{option}: .*path.yaml runs parts"):
        path.run(f"--{option}")
    assert not path.calls and not path.out.exists()


def test_a_part_that_a_limit_ended_has_not_ended_without_it(path):
    limited = "--part=noisy", "--optimizer_step_limit=2"
    assert path.run(*limited) == ["noisy"] and path.run(*limited) == []
    assert path.calls[0]["optimizer_step_limit"] == "2"
    assert path.run("--part=noisy") == ["noisy"] and path.run("--part=noisy") == []
