"""R14: files from strangers. Weights are data: nothing in them is executed."""

import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.fault_cases import Bench, Outcome, target
from benchmarks.fault_cases.jobs import ROOT, run, speech
from benchmarks.fault_cases.remains import newest
from modules.data.manifest import read_manifest, write_manifest
from modules.lora.files import load_lora_weights
from modules.models.htdemucs import HTDemucs
from modules.weights import checkpoint_files
from modules.weights.checkpointer import AtomicCheckpointer
from modules.weights.export import FORMAT, load_exported
from modules.weights.pretrained import load_pretrained
from tests.toy import ToySeparator

OVERRIDE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
CODE_PATHS = ("train.py", "separate.py", "export.py", "modules", "recipes", "data_prep")
# What unpacks or unpickles, and what of it is allowed.
UNSAFE = re.compile(
    r'\bpickle\.load|\bjoblib|\.extractall\((?![^)]*filter="data")|unpack_archive|'
    r"allow_pickle=True|load_pickle|yaml\.(unsafe_load|full_load)|weights_only=False"
)


class Canary:
    """Make a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.path}'",)


def plant(path: Path, content: object) -> None:
    """Write a pickle in the old and plain form, which torch.load also reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def plant_zip(path: Path, content: object) -> None:
    """Write a pickle as torch.save does today."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


@contextmanager
def override(on: bool) -> Iterator[None]:
    """Set torch's variable that makes loading unsafe, or not."""
    before = os.environ.pop(OVERRIDE, None)
    if on:
        os.environ[OVERRIDE] = "1"
    try:
        yield
    finally:
        os.environ.pop(OVERRIDE, None)
        if before is not None:
            os.environ[OVERRIDE] = before


def _load(path: Path) -> list[Path]:
    """Load a path as --pretrained does."""
    return load_pretrained(ToySeparator(), path)


def attacks(folder: Path, canary: Path) -> dict[str, Callable[[], object]]:
    """Return every way to hand us weights, by name, each with a canary in it."""
    bad = Canary(canary)
    found: dict[str, Callable[[], object]] = {}

    def pretrained(name: str, files: dict[str, object], single: str = "") -> None:
        for form in (plant, plant_zip):
            place = folder / f"{name}_{form.__name__}"
            for file, content in files.items():
                form(place / file, content)
            path = place / single if single else place
            found[path.as_posix()] = partial(_load, path)

    inside = {"conv.weight": bad}
    pretrained("checkpoint", {"separator.ckpt": inside})
    pretrained("ema", {"separator.ckpt": {}, "ema.ckpt": {"shadow": inside}})
    for suffix in ("ckpt", "bin"):
        parts = {f"{part}.{suffix}": bad for part in ("encoder", "masknet", "decoder")}
        pretrained(f"parts_{suffix}", parts)
    pretrained("huggingface", {"pytorch_model.bin": inside})
    pretrained("demucs", {"m.th": {"klass": bad, "args": (), "kwargs": {}}}, "m.th")
    package = {"klass": HTDemucs, "args": (bad,), "kwargs": {}, "state": {}}
    pretrained("arguments", {"m.th": package}, "m.th")
    pretrained("th", {"m.th": bad})
    pretrained("nested", {"CKPT+1/separator.ckpt": inside})

    pointer = folder / "pointer"
    plant(pointer / "best.pt", {"model": inside})
    (pointer / "last_best_checkpoint").write_text("best.pt")
    found["pointer"] = lambda: load_pretrained(ToySeparator(), pointer)
    outside = folder / "outside"
    outside.mkdir()
    plant(folder / "best.pt", {"model": inside})
    (outside / "last_best_checkpoint").write_text("../best.pt")
    found["pointer outside"] = lambda: load_pretrained(ToySeparator(), outside)

    code = f"__import__('os').system('touch {canary}')"
    metadata = {"klass": code, "args": code, "kwargs": code, "format": "pt"}
    lora = {"format": "sepbrain.lora.1", "config": code, "model": code, "base": code}
    for name, values, load in (
        ("metadata", metadata, lambda p: load_pretrained(ToySeparator(), p)),
        ("lora", lora, lambda p: load_lora_weights(ToySeparator(), p)),
    ):
        path = folder / f"{name}.safetensors"
        save_file({"conv.weight": torch.ones(2)}, path, values)
        found[name] = lambda path=path, load=load: load(path)
        for what, data in (
            ("pickle", pickle.dumps(bad)),
            ("absurd header", b"\xff" * 64),
            ("cut", path.read_bytes()[:20]),
        ):
            odd = folder / f"{name} {what}.safetensors"
            odd.write_bytes(data)
            found[odd.name] = lambda odd=odd, load=load: load(odd)

    network = "modules.models.htdemucs.HTDemucs"
    for name, model in (("os.system", "os.system"), ("HTDemucs", network)):
        export = folder / f"export {name}"
        export.mkdir()
        config = {"format": FORMAT, "model": model, "sample_rate": 8000}
        config["arguments"] = {"sources": [code], "segment_seconds": code}
        config["arguments"] |= {"sample_rate": code}
        (export / "config.json").write_text(json.dumps(config))
        plant(export / "model.safetensors", bad)
        found[export.name] = lambda export=export: load_exported(export)

    for name in ("separator", "optimizer", "lr"):
        save = folder / f"resume {name}"
        tmp = save / "tmp"
        plant(tmp / f"{name}.ckpt", bad)
        checkpoint_files.seal(tmp, {"end-of-epoch": True, "save_counter": 9})
        tmp.rename(save / "CKPT+00000009")
        network = ToySeparator()
        victim = {
            "separator": network,
            "optimizer": torch.optim.Adam(network.parameters()),
            "lr": torch.optim.lr_scheduler.StepLR(
                torch.optim.SGD(network.parameters(), 0.1), 1
            ),
        }[name]
        checkpointer = AtomicCheckpointer(save, {name: victim})
        found[save.name] = checkpointer.recover_if_possible
    tagged = folder / "tagged" / "CKPT+00000001"
    tagged.mkdir(parents=True)
    text = f"manifest: !!python/object/apply:os.system ['touch {canary}']\n".encode()
    digest = checkpoint_files.DIGEST_LINE + checkpoint_files._digest(text).encode()
    (tagged / "CKPT.yaml").write_bytes(text + digest + b"\n")
    checkpointer = AtomicCheckpointer(tagged.parent, {"model": ToySeparator()})
    found["tagged"] = checkpointer.recover_if_possible
    return found


def static_findings() -> list[str]:
    """Return the lines of our code that unpack or unpickle without care."""
    found = []
    for place in CODE_PATHS:
        path = ROOT / place
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            text = file.read_text(encoding="utf-8")
            for match in UNSAFE.finditer(text):
                found.append(f"{file.relative_to(ROOT)}: {match[0]}")
            for match in re.finditer(r"torch\.load\(((?:[^()]|\([^()]*\))*)\)", text):
                if "weights_only=True" not in match[1]:
                    found.append(f"{file.relative_to(ROOT)}: {match[0]}")
    return found


def escaping_ids(bench: Bench, outcome: Outcome) -> int:
    """Check that a run writes only into its folder, though ids look like paths."""
    recipe = speech(bench.folder, N_epochs=1)
    run(recipe.arguments(bench.folder / "first"))
    ids = ["../../../escaped", f"{bench.folder}/absolute"]
    rows = read_manifest(bench.folder / "first" / "save" / "test.csv")
    renamed = [
        type(row)(**{**vars(row), "id": id_})
        for row, id_ in zip(rows, ids, strict=True)
    ]
    write_manifest(bench.folder / "odd.csv", renamed)
    before = {p for p in bench.folder.rglob("*")}
    spec = {"fault": "manifest", "split": "test", "path": str(bench.folder / "odd.csv")}
    folder = bench.folder / "ids"
    settings = {"n_audio_to_save": 2, "tensorboard": True}
    job = run(recipe.arguments(folder, **settings), faults=[spec])
    outcome.expect(job.status == 0, f"ids like paths: {job.last_line}")
    new = {p for p in bench.folder.rglob("*")} - before
    escaped = [str(p) for p in new if folder not in (p, *p.parents)]
    outside = list(bench.folder.parent.glob("escaped*"))
    outcome.expect(not escaped + outside, f"ids like paths wrote {escaped + outside}")
    heard = list((folder / "audio").rglob("*.wav"))
    outcome.expect(heard or job.status, "ids like paths: no audio was saved at all")
    return len(ids)


@target(
    "R14",
    "no code runs from weights (--pretrained, checkpoints, LoRA, exported models), "
    "also with torch's override set; ids never become paths outside",
    "runs with the override, in all YAMLs, from pickles and archives",
)
def hostile_files(bench: Bench) -> Outcome:
    """Put canaries into every file that weights are read from."""
    outcome, count = Outcome(), 0
    logging.disable(logging.WARNING)
    for on in (False, True):
        folder = bench.folder / f"attacks {on}"
        folder.mkdir()
        canary = bench.folder / f"canary{on}"
        with override(on):
            for name, attack in attacks(folder, canary).items():
                count += 1
                try:
                    attack()
                    outcome.expect(False, f"{name}: loaded without a word")
                except Exception as error:
                    outcome.expect(str(error), f"{name}: an error without a text")
                outcome.expect(not canary.exists(), f"{name}: code was executed")
                canary.unlink(missing_ok=True)
        # The canary works: a careless reader would have run it.
        pickle.loads(pickle.dumps(Canary(canary)))
        outcome.expect(canary.exists(), "the canary itself does nothing")
    logging.disable(logging.NOTSET)

    # As a user: weights from a stranger, then a checkpoint in one's own folder.
    recipe = speech(bench.folder, N_epochs=1)
    canary = bench.folder / "canary_of_the_run"
    plant(bench.folder / "stranger" / "separator.ckpt", {"w": Canary(canary)})
    job = run(
        recipe.arguments(bench.folder / "run", pretrained=bench.folder / "stranger"),
        env={OVERRIDE: "1"},
    )
    outcome.expect(
        job.status == 1 and job.last_line.startswith("error: pretrained"),
        f"--pretrained: exit {job.status}, {job.last_line}",
    )
    run(recipe.arguments(bench.folder / "run"))
    swapped = newest(bench.folder / "run")
    tmp = swapped.with_name("tmp")
    shutil.copytree(swapped, tmp)
    (tmp / "CKPT.yaml").unlink()
    plant(tmp / "optimizer.ckpt", Canary(canary))
    checkpoint_files.seal(tmp, {"end-of-epoch": True, "save_counter": 99})
    tmp.rename(swapped.with_name("CKPT+00000099"))
    job = run(recipe.arguments(bench.folder / "run"), env={OVERRIDE: "1"})
    outcome.expect(job.status == 1, f"hostile checkpoint: exit {job.status}")
    outcome.expect(not canary.exists(), "a run executed code from weights")

    found = static_findings()
    outcome.expect(not found, f"in our code: {found}")
    if not bench.brief:
        count += escaping_ids(bench, outcome)
    outcome.figure = f"{count + 2} attacks" + (
        ", nothing executed, nothing outside" if outcome.passed else ""
    )
    return outcome
