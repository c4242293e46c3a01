"""The few collective operations that training needs, on one process or many.

Legend: W ranks, B examples of this rank, K values per example.
"""

import dataclasses
import datetime
import gc
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from speechbrain.utils.run_opts import RunOptions
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


def is_distributed() -> bool:
    """Return whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the number of this process, 0 on a single one."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if is_distributed() else 1


def init_process_group(run_opts: RunOptions, timeout_seconds: float) -> RunOptions:
    """Join the group that `torchrun` set up; without torchrun do nothing.

    Two things differ from SpeechBrain's `ddp_init_group`: the store is prefixed with
    torchrun's restart count, because stale keys of the attempt before can hang the
    next one, and the timeout is minutes, not two hours. The options returned have a
    backend that fits the device and, on accelerators, one device per local rank.
    """
    if "RANK" not in os.environ or "LOCAL_RANK" not in os.environ:
        return run_opts
    device = run_opts.device
    if device is None:
        # Without the check it names what torch was built for, not what is there.
        found = torch.accelerator.current_accelerator(check_available=True)
        device = str(found or "cpu")
    if device != "cpu" and ":" not in device:
        device = f"{device}:{os.environ['LOCAL_RANK']}"
    changes: dict[str, object] = {"device": device}
    if device == "cpu":
        changes["distributed_backend"] = "gloo"
    elif device.startswith("cuda"):
        torch.cuda.set_device(device)
    overridden = run_opts.overridden_args | changes.keys()
    run_opts = dataclasses.replace(run_opts, **changes, overridden_args=overridden)
    if not is_distributed():
        timeout = datetime.timedelta(seconds=timeout_seconds)
        store, rank_, world = next(dist.rendezvous("env://", timeout=timeout))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        dist.init_process_group(
            run_opts.distributed_backend,
            store=dist.PrefixStore(f"attempt{attempt}", store),
            rank=rank_,
            world_size=world,
            timeout=timeout,
        )
    return run_opts


def leave_process_group() -> None:
    """Leave the group, if any, at the orderly end of a run.

    Drop networks wrapped in DistributedDataParallel first: they hold the group, whose
    threads abort the process if they are at work while the interpreter exits. After an
    error leave the group alone: a collective might never end.
    """
    if is_distributed():
        gc.collect()  # the wrappers are part of reference cycles
        dist.destroy_process_group()


def gather_examples(values_KB: Tensor, batch_size: int) -> Tensor:
    """Return every rank's values per example [W, K, batch_size], the same on all ranks.

    `batch_size` is the room per rank, the same everywhere; the result is NaN where a
    rank had fewer examples.
    """
    padded = values_KB.new_full((values_KB.shape[0], batch_size), float("nan"))
    padded[:, : values_KB.shape[1]] = values_KB
    if not is_distributed():
        return padded[None]
    shares = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(shares, padded)
    return torch.stack(shares)


def gather_columns(columns: Mapping[str, Tensor], batch_size: int) -> dict[str, Tensor]:
    """Return every rank's columns, one rank's rows after the other's.

    Columns are numbers or masks by name, each [B, k] with a k of its own. They travel
    as float32, all in one message, and come back as in `gather_examples`.
    """
    widths = [column.shape[1] for column in columns.values()]
    local_BK = torch.cat([column.float() for column in columns.values()], dim=1)
    gathered_WKB = gather_examples(local_BK.T, batch_size)
    rows = gathered_WKB.transpose(1, 2).flatten(0, 1)
    return dict(zip(columns, rows.split(widths, dim=1), strict=True))


def gather_objects(item: object) -> list:
    """Return every rank's (picklable) object, in the order of ranks."""
    if not is_distributed():
        return [item]
    items: list = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def run_on_main(func: Callable[..., Any], *args: Any) -> Any:
    """Call `func` on rank 0 only; every rank gets its result or raises its error.

    SpeechBrain's `run_on_main` leaves the others waiting when the main one fails.
    """
    if not is_distributed():
        return func(*args)
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = func(*args)
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    result, failure = outcome
    if failure is not None:
        raise failure
    return result


def unwrap(module: torch.nn.Module) -> torch.nn.Module:
    """Return the network itself, without DistributedDataParallel and torch.compile."""
    inner: Any = module
    while True:
        if isinstance(inner, DistributedDataParallel | torch.nn.DataParallel):
            inner = inner.module
        elif "_orig_mod" in inner._modules:  # torch.compile's
            inner = inner._orig_mod
        else:  # a network may itself have a part of the name `module`
            return inner
