"""The few collective operations that training needs, on one process or many.

What one rank cannot do, all refuse, with the same error and the same exit status: what
a rank raises in `together` comes out of the next exchange of objects of every other
one. These travel over gloo between the CPUs, whatever backend the gradients take.

Legend: W ranks, B examples of this rank, K values per example.
"""

import contextlib
import dataclasses
import datetime
import gc
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from speechbrain.utils.run_opts import RunOptions
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from modules.runtime.devices import check_device
from modules.runtime.errors import UserError
from modules.runtime.signals import StopRun, waiting

#: The store by which the ranks meet; it remains when they form a group.
_meeting: dict[str, dist.Store] = {}
_alone: list[Callable] = []  #: What the main process runs without the others.
MEETING_SECONDS = 300.0
REFUSED = "refused"


def is_distributed() -> bool:
    """Return whether this process works with a group, and not alone."""
    return not _alone and dist.is_available() and dist.is_initialized()


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
    if not _is_rank():
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
    overridden = run_opts.overridden_args | changes.keys()
    run_opts = dataclasses.replace(run_opts, **changes, overridden_args=overridden)
    if not is_distributed():
        check_device(device)
        _exchange(None, None)  # what the others have refused so far
        kind, backend = device.partition(":")[0], run_opts.distributed_backend
        dist.init_process_group(
            "gloo" if backend == "gloo" else f"cpu:gloo,{kind}:{backend}",
            store=dist.PrefixStore("group", _meet()),
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            timeout=datetime.timedelta(seconds=timeout_seconds),
        )
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    return run_opts


def _is_rank() -> bool:
    """Whether torchrun, or who else sets its variables, has started this process."""
    return "RANK" in os.environ and "LOCAL_RANK" in os.environ


def _meet() -> dist.Store:
    """Return the store that the ranks share, with keys of torchrun's attempt alone."""
    attempt = f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if attempt not in _meeting:
        timeout = datetime.timedelta(seconds=MEETING_SECONDS)
        store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
        _meeting[attempt] = dist.PrefixStore(attempt, store)
    return _meeting[attempt]


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


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Refuse together: what this rank raises in the block, every rank raises.

    The others raise it at their next exchange of objects (`gather_objects`,
    `run_on_main`, `agreed`, the end of their block). Only errors that are no bugs are
    passed on: a bug may come between two exchanges of tensors.
    """
    try:
        yield
        gather_objects(None)
    except (UserError, OSError, StopRun) as error:
        if _is_rank() and not is_shared(error):
            try:
                _exchange(None, error)
            except RuntimeError as other:  # unless the others are gone
                if is_shared(other):
                    raise
        raise


def is_shared(error: BaseException) -> bool:
    """Whether all ranks raise this error, so that one line of the main one will do."""
    return getattr(error, "is_shared", False)


def agreed(items: Iterable[Any]) -> Iterator[Any]:
    """Yield items, as many on each rank, when all ranks have theirs."""
    for item in items:
        gather_objects(None)
        yield item


def look_around() -> None:
    """Raise what another rank has refused, without waiting for it."""
    if is_distributed() and _meeting and _meet().check([REFUSED]):
        gather_objects(None)


def gather_objects(item: object) -> list:
    """Return every rank's (picklable) object, in the order of ranks."""
    return _exchange(item, None) if is_distributed() else [item]


def run_on_main(func: Callable[..., Any], *args: Any) -> Any:
    """Call `func` on rank 0 only; every rank gets its result or raises its error.

    SpeechBrain's `run_on_main` leaves the others waiting when the main one fails.
    Within `func` there is one process: what it calls exchanges nothing.
    """
    if not is_distributed():
        return func(*args)
    result, failure = None, None
    if rank() == 0:
        _alone.append(func)
        try:
            result = func(*args)
        except (Exception, StopRun) as error:
            failure = error
        finally:
            _alone.pop()
    return _exchange(result, failure)[0]


def _exchange(item: object, failure: BaseException | None) -> list:
    """Return every rank's object, or raise the first rank's failure on all of them."""
    world = world_size() if is_distributed() else int(os.environ["WORLD_SIZE"])
    pairs: list = [None] * world
    with waiting():
        if not is_distributed():
            _exchange_by_store(pairs, failure)
        else:
            if failure is not None and _meeting:
                _meet().set(REFUSED, "")
            dist.all_gather_object(pairs, (item, failure))
    for _, first in pairs:
        if first is not None:
            first.is_shared = True
            raise first
    return [item for item, _ in pairs]


def _exchange_by_store(pairs: list, failure: BaseException | None) -> None:
    """Tell failures, once, before there is a group; the main rank leaves last.

    What is read here is text: the address of the store comes from the environment.
    """
    store, number, others = _meet(), os.environ["RANK"], range(len(pairs))
    mine = failure and [isinstance(failure, StopRun), str(failure)]
    store.set(f"said/{number}", json.dumps(mine))
    for other in others:
        said = json.loads(store.get(f"said/{other}"))
        pairs[other] = (None, said and (StopRun if said[0] else UserError)(said[1]))
    store.set(f"heard/{number}", "")
    if number == "0":
        store.wait([f"heard/{other}" for other in others])


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
