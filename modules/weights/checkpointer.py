"""Checkpoints that survive a kill, a full disk and a damaged file.

A checkpoint is written into `.tmp-*`, its files are flushed, CKPT.yaml with the size
and digest of each comes last, and one rename to `CKPT+*` publishes it; deleting begins
with a rename to `.trash-*`. A rename happens as a whole or not at all, so a kill at any
moment leaves only whole checkpoints. "Recent" is the order of saving, never the clock.
"""

import logging
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.utils import checkpoints as sb
from speechbrain.utils.checkpoints import CKPT_PREFIX, Checkpoint
from speechbrain.utils.distributed import MainProcessContext
from torch import Tensor

from modules.runtime.distributed import gather_objects, run_on_main
from modules.runtime.errors import (
    CheckpointMismatch,
    CheckpointSaveError,
    DamagedCheckpoint,
    HparamsError,
)
from modules.runtime.files import fsync
from modules.weights.checkpoint_files import (
    check_finite,
    check_fit,
    named_tensors,
    plain,
    read_checkpoint,
    seal,
    weights_only_loading,
)
from modules.weights.ema import mean_state

TMP, TRASH = ".tmp-", ".trash-"
COUNTER = "save_counter"

logger = logging.getLogger(__name__)


def best_checkpoint(folder: Path, metric: str | None = None) -> Checkpoint | None:
    """Return the best whole checkpoint in a folder, or the newest if none is ranked.

    Without `metric` it is the one that the run was to be ranked by. Raise a
    `DamagedCheckpoint` if there are checkpoints and none is whole.
    """
    checkpointer = AtomicCheckpointer(folder)
    for ckpt in checkpointer.list_checkpoints()[:1]:
        metric = metric or ckpt.meta.get("settings", {}).get("monitor", "si_snr")
    best = checkpointer.find_checkpoint(max_key=metric) if metric else None
    found = best or checkpointer.find_checkpoint()
    if found is None and checkpointer.damaged:
        raise DamagedCheckpoint(f"no whole checkpoint: {checkpointer.damaged}")
    return found


def recency(ckpt: Checkpoint) -> int:
    """Return the place of a checkpoint in the order of saving."""
    return ckpt.meta[COUNTER]


class AtomicCheckpointer(sb.Checkpointer):
    """SpeechBrain's `Checkpointer` with atomic publishing and validated loading.

    Any object with `state_dict` and `load_state_dict` is recoverable without hooks.
    Call every method on all ranks: rank 0 alone reads directories, writes and deletes,
    all ranks load, and an error of one is raised by all. Hold a `RunLock` meanwhile.

    >>> model = torch.nn.Linear(2, 2)
    >>> checkpointer = AtomicCheckpointer(getfixture("tmp_path"), {"model": model})
    >>> saved = checkpointer.save_checkpoint(meta={"loss": torch.tensor(0.5)})
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> checkpointer.recover_if_possible(min_key="loss").meta["loss"]
    0.5
    >>> bool(model.weight.any())
    True
    """

    def __init__(self, checkpoints_dir: str | Path, *args: object, **kwargs: object):
        super().__init__(checkpoints_dir, *args, **kwargs)
        self._damaged: dict[Path, str] = {}
        self._cleaned: Path | None = None

    # ------------------------------------------------------------------ saving

    def save_checkpoint(
        self,
        meta: Mapping | None = None,
        end_of_epoch: bool = True,
        name: str | None = None,
        verbosity: int = logging.INFO,
    ) -> Checkpoint:
        """Publish `CKPT+<name>+<counter>` with all recoverables, or change nothing.

        `meta` may hold numbers, text, tensors, arrays, paths and containers of them.
        Raise `NonFiniteWeights` for NaN or Inf in a recoverable, `CheckpointSaveError`
        if writing fails.
        """
        ckpt = run_on_main(self._publish, dict(meta or {}), end_of_epoch, name)
        logger.log(verbosity, "saved checkpoint %s", ckpt.path)
        return ckpt

    def save_and_keep_only(
        self,
        meta: Mapping | None = None,
        end_of_epoch: bool = True,
        name: str | None = None,
        verbosity: int = logging.INFO,
        **criteria: Any,
    ) -> None:
        """Save, then delete all but the best by each key, see `delete_checkpoints`.

        The links `latest` and, given `max_keys`, `best` lead to two of those that stay.
        """
        self.save_checkpoint(meta, end_of_epoch, name, verbosity)
        run_on_main(self._link, *criteria.get("max_keys", ()))
        self.delete_checkpoints(verbosity=verbosity, **criteria)

    def _link(self, max_key: str | None = None) -> None:
        found = {"latest": self.list_checkpoints()}
        if max_key is not None:
            found["best"] = self.find_checkpoints(max_key=max_key)
        for name, ckpts in found.items():
            partial = self.checkpoints_dir / f"{TMP}{uuid.uuid4().hex}"
            try:
                for ckpt in ckpts[:1]:
                    partial.symlink_to(ckpt.path.name)
                    os.replace(partial, self.checkpoints_dir / name)
            except OSError as error:  # a disk without links, or a folder of that name
                partial.unlink(missing_ok=True)
                logger.debug("no link %s: %s", name, error)

    def _publish(self, meta: dict, end_of_epoch: bool, name: str | None) -> Checkpoint:
        meta = {"unixtime": time.time(), "end-of-epoch": end_of_epoch, **plain(meta)}
        objects = self.recoverables.items()
        states = {k: o.state_dict() for k, o in objects if hasattr(o, "state_dict")}
        check_finite(states)
        self._clean_leftovers()
        meta[COUNTER] = self._next_counter()
        suffix = f"{name}+{meta[COUNTER]:08d}" if name else f"{meta[COUNTER]:08d}"
        final = self.checkpoints_dir / f"{CKPT_PREFIX}+{suffix}"
        tmp = self.checkpoints_dir / f"{TMP}{uuid.uuid4().hex}"
        try:
            os.makedirs(tmp)
            with MainProcessContext():  # hooks must not wait for the other ranks
                for key in self.recoverables:
                    path = tmp / f"{key}{sb.PARAMFILE_EXT}"
                    self._save_one(key, states.get(key), path)
            seal(tmp, meta)
            os.rename(tmp, final)
            fsync(self.checkpoints_dir)
        except BaseException as error:
            shutil.rmtree(tmp, ignore_errors=True)
            if not isinstance(error, Exception):
                raise
            needed = sum(t.nbytes for _, t in named_tensors(states))
            free = shutil.disk_usage(self.checkpoints_dir).free
            raise CheckpointSaveError(
                f"cannot save a checkpoint in {self.checkpoints_dir} (about {needed} "
                f"bytes needed, {free} bytes free): {type(error).__name__}: {error}; "
                "the checkpoints saved before are intact"
            ) from error
        return read_checkpoint(final)

    def _save_one(self, name: str, state: object, path: Path) -> None:
        obj = self.recoverables[name]
        hook = self.custom_save_hooks.get(name)
        hook = hook or sb.get_default_hook(obj, sb.DEFAULT_SAVE_HOOKS)
        if hook is not None:
            hook(obj, path)
        elif state is not None:
            torch.save(state, path)
        else:
            raise TypeError(f"no save hook for recoverable '{name}' ({type(obj)})")

    def _next_counter(self) -> int:
        names = [path.name for path in self.checkpoints_dir.glob(f"{CKPT_PREFIX}+*")]
        found = [re.search(r"\+(\d{8,})$", name) for name in names]
        return 1 + max((int(match[1]) for match in found if match), default=0)

    # ---------------------------------------------------------------- choosing

    def list_checkpoints(self) -> list[Checkpoint]:
        """Return the checkpoints whose files have the right size, newest first.

        A damaged one is left out with a warning. Every calling rank reads the folder.
        """
        found = []
        for path in self.checkpoints_dir.glob(f"{CKPT_PREFIX}+*"):
            if path in self._damaged or not path.is_dir():
                continue
            try:
                found.append(read_checkpoint(path))
            except DamagedCheckpoint as error:
                self._leave_out(path, error)
        return sorted(found, key=recency, reverse=True)

    def find_checkpoints(
        self,
        importance_key: Callable | None = None,
        max_key: str | None = None,
        min_key: str | None = None,
        ckpt_predicate: Callable | None = None,
        max_num_checkpoints: int | None = None,
    ) -> list[Checkpoint]:
        """Filter `list_checkpoints` and sort it as the parent class does, best first.

        A checkpoint whose value under the key is absent, NaN or Inf is left out.
        """
        if sum(key is not None for key in (importance_key, max_key, min_key)) > 1:
            raise ValueError("give one of importance_key, max_key and min_key only")
        ckpts = self.list_checkpoints()
        if ckpt_predicate is not None:
            ckpts = [ckpt for ckpt in ckpts if ckpt_predicate(ckpt)]
        key = max_key if max_key is not None else min_key
        if key is not None:
            ckpts = [ckpt for ckpt in ckpts if _is_finite(ckpt.meta.get(key))]
            ckpts.sort(key=lambda c: c.meta[key], reverse=max_key is not None)
        # Without a key, the order is that of saving; `ckpt_recency` reads the clock.
        elif importance_key not in (None, sb.ckpt_recency):
            ckpts.sort(key=importance_key, reverse=True)
        return ckpts[:max_num_checkpoints]

    def find_checkpoint(self, **criteria: Callable | str | None) -> Checkpoint | None:
        """Return the first of `find_checkpoints` whose digests are right."""
        return run_on_main(self._first_whole, criteria)

    def _first_whole(self, criteria: dict) -> Checkpoint | None:
        for ckpt in self.find_checkpoints(**criteria):
            try:
                return read_checkpoint(ckpt.path, check_digests=True)
            except DamagedCheckpoint as error:
                self._leave_out(ckpt.path, error)
        return None

    @property
    def damaged(self) -> str:
        """Name the damaged checkpoints that were found, and what is wrong with them."""
        found = self._damaged.items()
        return "; ".join(f"{path}: {why}" for path, why in found if path.exists())

    def _leave_out(self, path: Path, error: DamagedCheckpoint) -> None:
        self._damaged[path] = str(error)
        logger.warning("checkpoint %s is damaged and left out: %s", path, error)

    # ----------------------------------------------------------------- loading

    def recover_if_possible(
        self, **criteria: Callable | str | None
    ) -> Checkpoint | None:
        """Load and return the best whole checkpoint by `find_checkpoints`, if any.

        Raise `DamagedCheckpoint` if checkpoints exist and none is whole,
        `CheckpointMismatch` if one does not fit, `RuntimeError` if loading fails.
        """
        ckpt = run_on_main(self._choose, criteria)
        if ckpt is None:
            logger.info("no checkpoint in %s yet", self.checkpoints_dir)
        else:
            self._call_load_hooks(ckpt)
        return ckpt

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint, or raise `DamagedCheckpoint` if it is not whole."""
        run_on_main(read_checkpoint, checkpoint.path, True)
        self._call_load_hooks(checkpoint)

    def _choose(self, criteria: dict) -> Checkpoint | None:
        self._clean_leftovers()
        ckpt = self._first_whole(criteria)
        # If whole ones are left, none of them met the criteria.
        if ckpt is None and self.damaged and self._first_whole({}) is None:
            raise DamagedCheckpoint(
                f"no whole checkpoint to load ({self.damaged}); move the damaged "
                "ones away to start afresh"
            )
        return ckpt

    def _call_load_hooks(self, checkpoint: Checkpoint) -> None:
        # Find an absent file before the first object changes.
        for name in sorted(self.recoverables.keys() - checkpoint.paramfiles.keys()):
            optional = self.allow_partial_load or self.optional_recoverables.get(name)
            message = f"checkpoint {checkpoint.path} holds no '{name}'"
            if not optional and not name.startswith("dataloader"):
                held = ", ".join(sorted(checkpoint.paramfiles))
                raise CheckpointMismatch(
                    f"{message}, only {held}: it was saved with other settings; give "
                    "the same as before, or another output_folder"
                )
            logger.warning("%s; it keeps its present state", message)
        failure, name = None, ""
        try:
            with weights_only_loading():
                for name in self.recoverables:
                    if path := checkpoint.paramfiles.get(name):
                        self._load_one(name, path, checkpoint.meta["end-of-epoch"])
        except Exception as error:
            misfit = isinstance(error, CheckpointMismatch)
            failure = (CheckpointMismatch if misfit else RuntimeError)(
                f"cannot load '{name}' from checkpoint {checkpoint.path}: {error}"
            )
            failure.__cause__ = error
        failures = gather_objects(None if failure is None else str(failure))
        if failure is not None:
            raise failure
        for rank, message in enumerate(failures):
            if message is not None:
                raise RuntimeError(f"rank {rank}: {message}")
        logger.info("loaded checkpoint %s", checkpoint.path)

    def _load_one(self, name: str, path: Path, end_of_epoch: bool) -> None:
        obj = self.recoverables[name]
        hook = self.custom_load_hooks.get(name)
        hook = hook or sb.get_default_hook(obj, sb.DEFAULT_LOAD_HOOKS)
        if hook is not None and hook is not sb.torch_recovery:
            hook(obj, path, end_of_epoch)
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(obj, torch.nn.Module):
            check_fit(obj, state)
            obj.load_state_dict(state, strict=True)
        else:
            obj.load_state_dict(state)

    # ---------------------------------------------------------------- deleting

    def delete_checkpoints(
        self,
        *,
        num_to_keep: int = 1,
        min_keys: Sequence[str] | None = None,
        max_keys: Sequence[str] | None = None,
        importance_keys: Sequence[Callable] = (recency,),
        ckpt_predicate: Callable | None = None,
        verbosity: int = logging.INFO,
        spare: int = 0,
    ) -> None:
        """Delete the checkpoints that are not among the best `num_to_keep` by any key.

        The newest `spare` always stay, in case the newest turns out to be damaged.
        """
        if num_to_keep < 0:
            raise ValueError(f"num_to_keep must not be negative, got {num_to_keep}")
        orders: list[dict[str, Any]] = [{"min_key": key} for key in min_keys or ()]
        orders += [{"max_key": key} for key in max_keys or ()]
        orders += [{"importance_key": key} for key in importance_keys]

        def delete() -> None:
            kept = {ckpt.path for ckpt in self.list_checkpoints()[:spare]}
            candidates: set[Path] = set()
            for order in orders:
                found = self.find_checkpoints(**order, ckpt_predicate=ckpt_predicate)
                candidates |= {ckpt.path for ckpt in found}
                kept |= {ckpt.path for ckpt in found[:num_to_keep]}
            for path in candidates - kept:
                trash = self.checkpoints_dir / f"{TRASH}{uuid.uuid4().hex}"
                os.rename(path, trash)
                fsync(self.checkpoints_dir)
                shutil.rmtree(trash)
                logger.log(verbosity, "deleted checkpoint %s", path)

        run_on_main(delete)

    def _clean_leftovers(self) -> None:
        """Remove, once per folder, what a killed process left half done."""
        if self._cleaned != self.checkpoints_dir and self.checkpoints_dir.is_dir():
            for path in self.checkpoints_dir.iterdir():
                if path.name.startswith(TMP) and path.is_symlink():
                    path.unlink(missing_ok=True)
                elif path.name.startswith((TMP, TRASH)):
                    shutil.rmtree(path, ignore_errors=True)  # read-only: harmless
            self._cleaned = self.checkpoints_dir


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def mean_of_epochs(
    folder: str | Path, number: int, metric: str | None = None
) -> dict[str, Tensor]:
    """Return the mean weights of `number` epochs, the newest, or the best by `metric`.

    Raise an `HparamsError` if there are fewer, `DamagedCheckpoint` if one is damaged.
    """
    found = AtomicCheckpointer(folder).find_checkpoints(
        importance_key=None if metric else recency,
        max_key=metric,
        ckpt_predicate=lambda ckpt: INTRA_EPOCH_CKPT_FLAG not in ckpt.meta,
        max_num_checkpoints=number,
    )
    if len(found) < number:
        name = f"average_{'best' if metric else 'last'}"
        raise HparamsError(
            f"{name}={number} needs as many checkpoints of whole epochs (here: "
            f"{len(found)}); {name}=0 tests without"
        )
    whole = (read_checkpoint(ckpt.path, check_digests=True) for ckpt in found)
    paths = [ckpt.paramfiles["separator"] for ckpt in whole]
    logger.info(f"The mean of {', '.join(c.path.name for c in found)}")
    return mean_state(torch.load(p, "cpu", weights_only=True) for p in paths)
