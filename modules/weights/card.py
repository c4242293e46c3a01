"""The README of an exported folder: a model card as Hugging Face's hub reads it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import nn

from modules.weights.checkpoint_files import read_checkpoint
from modules.weights.runs import SETTINGS, Run, source_names, tested_checkpoint
from modules.weights.speechbrain_files import loaded_by
from modules.weights.stated import averaged

TASK = "audio-to-audio"


def model_card(
    run: Run,
    model: nn.Module,
    config: Mapping[str, Any],
    folder: Path,
    licence: str,
    hub: bool,
    onnx: bool,
) -> str:
    """Return the text of the card; `hub` and `onnx` say what else the folder holds."""
    name = f"{type(model).__name__}: {run.folder.parent.name}/{run.folder.name}"
    sources = source_names(model, config["sample_rate"])
    what = "music" if hasattr(model, "sources") else "speech"
    scores = _scores(run, config)
    front = ModelCardData(
        license=licence,
        library_name="speechbrain" if hub else None,
        pipeline_tag=TASK,
        tags=["audio-source-separation", f"{what}-separation", type(model).__name__],
        datasets=[_trained_on(run)[0]],
        metrics=list(scores) or None,
        model_name=name if scores else None,
        eval_results=[_result(run, *score) for score in scores.items()] or None,
    )
    card = ModelCard.from_template(
        front,
        str(Path(__file__).with_name("card.md")),
        name=name,
        what=what,
        rate=config["sample_rate"],
        into=", ".join(sources) if what == "music" else f"{len(sources)} voices",
        size=f"{sum(p.numel() for p in model.parameters()) / 1e6:.3g}",
        config=config,
        folder=folder.name,
        hub=hub,
        onnx=onnx,
        loader=loaded_by(model),
        training=_training(run, config),
        scores=scores,
        tested_on=_tested_on(run),
        segment=run.said("segment_seconds"),
    )
    return f"{card}\n"


def _training(run: Run, config: Mapping[str, Any]) -> dict[str, str]:
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
    return {name: text for name, text in rows.items() if text}


def _weights(run: Run, config: Mapping[str, Any]) -> str:
    number, metric = averaged(run.folder / SETTINGS)
    if number and run.checkpoint is None:
        return f"the mean of the {'best' if metric else 'last'} {number} epochs"
    if config["lora"] != "merged" and not config["adapters"]:
        return "of the pretrained model"
    one = run.checkpoint
    meta = (tested_checkpoint(run) if one is None else read_checkpoint(one)).meta
    how = ", averaged over the steps (EMA)" if run.value("ema_decay") else ""
    return f"epoch {meta['epoch']}{how}" if "epoch" in meta else "within an epoch"


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
        not averaged(run.folder / SETTINGS)[0]
        and tested_checkpoint(run).path.samefile(run.checkpoint)
    )
    if config["lora"] == "none" or not tested or not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    units = content.get("units", {})
    return {
        name: {**entry, "unit": units.get(name, "dB")}
        for name, entry in content["metrics"].items()
        if entry["mean"] is not None
    }


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
