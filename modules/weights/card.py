"""The README of an exported folder: a model card as Hugging Face's hub reads it."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from modules.weights.checkpoint_files import read_checkpoint
from modules.weights.runs import Run, source_names, tested_checkpoint
from modules.weights.speechbrain_files import loaded_by

TASK = "audio-to-audio"

OURS = """```python
import soundfile
import torch

from recipes.separator import Separator

separator = Separator.load("FOLDER")
mixture, rate = soundfile.read("mixture.wav", dtype="float32", always_2d=True)
estimates = separator.separate(torch.from_numpy(mixture.T), sample_rate=rate)
for name, wave in estimates.items():
    soundfile.write(f"{name}.wav", wave.T.numpy(), rate)
```"""

SPEECHBRAIN = """```python
import soundfile
from speechbrain.inference.MODULE import NAME

model = LOADER("FOLDER")
estimates = model.separate_file("mixture.wav")[0].cpu()
for number, name in enumerate(model.hparams.sources):
    wave = estimates[..., number].numpy().T
    soundfile.write(f"{name}.wav", wave, model.hparams.sample_rate)
```"""


def model_card(
    run: Run,
    model: nn.Module,
    config: Mapping[str, Any],
    folder: Path,
    licence: str,
    hub: bool,
) -> str:
    """Return the text of the card; `hub` says whether SpeechBrain loads the folder."""
    name = f"{type(model).__name__}: {run.folder.parent.name}/{run.folder.name}"
    rate = config["sample_rate"]
    sources = source_names(model, rate)
    what = "music" if hasattr(model, "sources") else "speech"
    into = ", ".join(sources) if what == "music" else f"{len(sources)} voices"
    size = f"{sum(p.numel() for p in model.parameters()) / 1e6:.3g} M parameters"
    parts = [
        f"# {name}",
        f"Separates {what} at {rate} Hz into {into}; {size}. Trained "
        "with sepbrain, recipes for source separation with SpeechBrain.",
        *_notes(config),
        "## Use it",
        *_examples(model, folder.name, hub),
        "## How it was trained",
        _table(("", ""), _training(run, config)),
    ]
    metrics = _scores(run, config)
    if metrics:
        columns = ("mean", "standard_error", "count")
        rows = [
            (name, *(_number(entry[key]) for key in columns))
            for name, entry in metrics.items()
        ]
        head = ("score", "mean, dB", "standard error", "examples")
        parts += [f"## Scores\n\nOn {_tested_on(run)}.", _table(head, rows)]
    parts += ["## Limits", _limits(run, what, rate, len(sources))]
    results = [_result(run, key, entry) for key, entry in metrics.items()]
    front = ModelCardData(
        license=licence,
        library_name="speechbrain" if hub else None,
        pipeline_tag=TASK,
        tags=["audio-source-separation", f"{what}-separation", type(model).__name__],
        datasets=[_trained_on(run)[0]],
        metrics=list(metrics) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return f"---\n{front.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _notes(config: Mapping[str, Any]) -> list[str]:
    """Say what is special of the weights."""
    notes = []
    if config["weights"] == "int8":
        notes.append(
            "Weights in int8 with a scale per output channel, read as floats. The "
            "scores are those of the weights before rounding."
        )
    if config["adapters"]:
        adapters = f"`{config['adapters']}`"
        notes.append(f"Its adapters are in {adapters} and belong to these weights.")
    elif config["lora"] == "none":
        notes.append("The weights that adapters were trained on, without these.")
    return notes


def _examples(model: nn.Module, folder: str, hub: bool) -> list[str]:
    given = [f"In sepbrain's folder, at the rate of the file:\n\n{OURS}"]
    module, name, call = loaded_by(model)
    if hub:
        runs = "" if call else " It runs `custom.py`: read it first."
        text = f"With SpeechBrain alone, at the model's rate.{runs}\n\n{SPEECHBRAIN}"
        given.append(text.replace("LOADER", f"{name}{call}"))
    values = {"FOLDER": folder, "MODULE": module, "NAME": name}
    return [re.sub("|".join(values), lambda m: values[m[0]], text) for text in given]


def _training(run: Run, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    # Where things lay on the computer of the one who trained is nobody's business.
    command = re.sub(r"(?<![\w.])[/~]\S*/(?=\S)", ".../", run.notes.get("command", ""))
    names = ("base_folder_dm", "num_spks", "N_epochs", "segment_seconds", "batch_size")
    given = {name: run.said(name) for name in (*names, "lr", "seed")}
    rows = {
        "command": f"`{command}`" if command else "",
        "data": _trained_on(run)[1],
        "weights": _weights(run, config),
        "versions": run.notes.get("versions", ""),
    }
    given["base_folder_dm"] = Path(given["base_folder_dm"]).name
    rows |= {"started from": Path(run.said("pretrained")).name, **given}
    return [(name, text) for name, text in rows.items() if text]


def _weights(run: Run, config: Mapping[str, Any]) -> str:
    if (number := run.value("average_last")) and run.checkpoint is None:
        return f"the mean of the last {number} epochs"
    if config["lora"] != "merged" and not config["adapters"]:
        return "of the pretrained model"
    one = run.checkpoint
    meta = (tested_checkpoint(run) if one is None else read_checkpoint(one)).meta
    averaged = (
        ", averaged over the steps (EMA)" if float(run.said("ema_decay") or 0) else ""
    )
    return f"epoch {meta['epoch']}{averaged}" if "epoch" in meta else "within an epoch"


def _trained_on(run: Run) -> tuple[str, str]:
    """Return the data set's short name, and what else is known of it."""
    # A later test may have named another folder in the YAML.
    found = re.search(r"--data_folder[= ]'?([^\s']+)", run.notes.get("command", ""))
    folder = Path(found[1] if found else run.said("data_folder")).name or "unknown"
    short = run.said("dataset") or folder
    return short, short if short == folder else f"{short}, folder {folder}"


def _tested_on(run: Run) -> str:
    short, known = _trained_on(run)
    folder = Path(run.said("test_folder") or run.said("data_folder")).name
    return f"the test set of {short if known.endswith(folder) else folder}"


def _scores(run: Run, config: Mapping[str, Any]) -> dict[str, dict]:
    """Return the test's metrics, if the test was of these weights."""
    path = run.folder / "test_results.json"
    tested = run.checkpoint is None or (
        not run.value("average_last")
        and tested_checkpoint(run).path.samefile(run.checkpoint)
    )
    if config["lora"] == "none" or not tested or not path.is_file():
        return {}
    metrics = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    return {k: entry for k, entry in metrics.items() if entry["mean"] is not None}


def _result(run: Run, metric: str, entry: Mapping[str, Any]) -> EvalResult:
    return EvalResult(
        task_type=TASK,
        task_name="Audio source separation",
        dataset_type=_trained_on(run)[0],
        dataset_name=_tested_on(run),
        dataset_split="test",
        metric_type=metric,
        metric_value=round(entry["mean"], 4),
        metric_args={k: entry[k] for k in ("standard_error", "count")},
    )


def _limits(run: Run, what: str, rate: int, count: int) -> str:
    limits = [
        f"It was trained at {rate} Hz: what lies above {rate // 2} Hz is lost.",
        "Scores hold for the data that they were measured on. Other rooms, noises, "
        "languages, instruments or levels were not measured.",
    ]
    if what == "speech":
        limits += [
            f"It always gives {count} voices, in any order, also where more or fewer "
            "people talk. It takes one channel.",
        ]
    if segment := run.said("segment_seconds"):
        limits.append(f"It was trained on excerpts of {segment} s.")
    return "\n".join(f"- {limit}" for limit in limits)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | int | None) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value or "-")
