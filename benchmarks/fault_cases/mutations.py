"""The safeguards, each with a way to disable it and the target that must then fail.

A bench that passes without a safeguard would show nothing. Only processes of the bench
apply these mutations, when the environment says so (`launch.py`).
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch

from modules.audio import io
from modules.data import mixtures
from modules.data.batch import Batch
from modules.runtime import cli, distributed, signals
from modules.runtime.run_lock import RunLock
from modules.runtime.signals import StopRequest
from modules.weights import checkpoint_files, checkpointer
from recipes import evaluation, separation, step
from recipes.train_stats import NonFiniteWatch


@dataclass(frozen=True)
class Mutation:
    """A way to disable a safeguard, and the row (`target`) that must then fail."""

    what: str
    target: str
    disable: Callable[[], None]


def put(owner: object, name: str, value: object) -> None:
    """Replace an attribute, which must exist."""
    getattr(owner, name)  # a renamed safeguard would stay enabled unnoticed
    setattr(owner, name, value)


def no_fsync() -> None:
    for module in (checkpoint_files, checkpointer):
        put(module, "fsync", lambda path: None)


def no_rename() -> None:
    """Publish file by file into the final folder."""

    def move(source: Path, folder: Path) -> None:
        if "CKPT+" not in os.fspath(folder):
            return os.rename(source, folder)
        os.makedirs(folder)
        for path in sorted(Path(source).iterdir()):
            os.rename(path, Path(folder) / path.name)
        return shutil.rmtree(source)

    put(checkpointer, "os", _With(os, rename=move))


class _With:
    """Stand for a module with some names replaced, for one importer only."""

    def __init__(self, module: object, **names: object) -> None:
        self._module = module
        vars(self).update(names)

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)


def no_digest() -> None:
    put(checkpoint_files, "fingerprint", lambda path: [path.stat().st_size, ""])


def each_rank_decides_alone() -> None:
    """Let every rank see its own losses only."""
    gather = distributed.gather_examples

    def alone(values_KB: torch.Tensor, batch_size: int) -> torch.Tensor:
        gathered_WKB = gather(values_KB, batch_size)
        gathered_WKB[:] = gathered_WKB[distributed.rank()].clone()
        return gathered_WKB

    put(distributed, "gather_examples", alone)


def no_sanitising() -> None:
    def all_are_finite(self: Batch, *_: object) -> torch.Tensor:
        return torch.ones(len(self.ids), dtype=torch.bool, device=self.mix.device)

    put(Batch, "zero_nonfinite", all_are_finite)


def no_sums() -> None:
    put(mixtures, "sum_mismatch", lambda *args: "")


def no_lock() -> None:
    put(RunLock, "_lock", lambda self: None)


def signals_kill() -> None:
    """Let the signals have their default effect."""
    put(StopRequest, "__enter__", lambda self: self)


def ranks_outlive_torchrun() -> None:
    put(signals, "follow_torchrun", lambda: None)


def nonfinite_is_saved() -> None:
    put(checkpointer, "check_finite", lambda states: None)
    put(NonFiniteWatch, "look", lambda *args: None)


def no_seeding() -> None:
    put(step, "seed_step", lambda *args, **kwargs: None)


def no_comparison() -> None:
    put(separation, "check_settings", lambda *args: {})


def validations_are_finished() -> None:
    put(StopRequest, "at_once", lambda self: contextlib.nullcontext())


def refuses_alone() -> None:
    put(distributed, "together", contextlib.nullcontext)


def plain_streams() -> None:
    put(cli, "keep_printing", lambda: None)


def names_collide() -> None:
    def printable(id_: str) -> str:
        return "".join(c if c.isprintable() and c != "/" else "_" for c in id_)

    put(evaluation, "safe_name", printable)


def headers_are_believed() -> None:
    put(io, "_count_frames", lambda path, stamp: soundfile.info(path).frames)


def unsafe_loading() -> None:
    """Make torch.load as it was before 2.6."""
    load = torch.load

    def unsafe(*args: object, **kwargs: object) -> object:
        return load(*args, **kwargs | {"weights_only": False})

    put(torch, "load", unsafe)


MUTATIONS = {
    "fsync": Mutation("files are not flushed", "R1", no_fsync),
    "rename": Mutation("published file by file", "R1", no_rename),
    "digest": Mutation("the manifest holds no digests", "R10", no_digest),
    "collective": Mutation("each rank decides alone", "R5", each_rank_decides_alone),
    "sanitising": Mutation("NaN input is not zeroed", "R5", no_sanitising),
    "sums": Mutation("mixtures need not be sums", "R11", no_sums),
    "lock": Mutation("the folder is not locked", "R12", no_lock),
    "signals": Mutation("signals are not handled", "R8", signals_kill),
    "orphans": Mutation("ranks go on without torchrun", "R8", ranks_outlive_torchrun),
    "finite": Mutation("NaN weights are saved", "R6", nonfinite_is_saved),
    "seeding": Mutation("steps are not seeded", "R3", no_seeding),
    "comparison": Mutation("settings are not compared", "R12", no_comparison),
    "at_once": Mutation("validations end", "R15", validations_are_finished),
    "together": Mutation("each rank refuses alone", "R16", refuses_alone),
    "streams": Mutation("streams can fail", "R17", plain_streams),
    "names": Mutation("outputs are named without a digest", "R18", names_collide),
    "lengths": Mutation("headers are believed", "R19", headers_are_believed),
    "weights_only": Mutation("pickles are executed", "R14", unsafe_loading),
}


def apply(name: str) -> None:
    """Disable one safeguard in this process and those forked from it."""
    MUTATIONS[name].disable()
