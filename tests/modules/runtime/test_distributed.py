"""Collectives: the same call on one process and on three gloo ranks."""

import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.multiprocessing as mp
from speechbrain.utils.run_opts import RunOptions

from modules.runtime import distributed
from modules.runtime.errors import DataError, UserError
from modules.runtime.signals import StopRun

WORLD = 3


def test_one_process_needs_no_group():
    assert not distributed.is_distributed()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.gather_objects("item") == ["item"]
    assert distributed.run_on_main(divmod, 7, 2) == (3, 1)


def test_without_torchrun_the_options_stay_as_they_are(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    options = RunOptions(device="cpu")
    assert distributed.init_process_group(options, 1) is options


def test_missing_examples_are_gathered_as_nan():
    values_KB = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    gathered_WKB = distributed.gather_examples(values_KB, batch_size=3)
    assert gathered_WKB.shape == (1, 2, 3)
    assert torch.equal(gathered_WKB[0, :, :2], values_KB)
    assert bool(gathered_WKB[0, :, 2].isnan().all())


def test_every_wrapper_is_taken_off():
    network = torch.nn.Linear(2, 2)
    wrapped = torch.compile(torch.nn.DataParallel(network))
    assert distributed.unwrap(wrapped) is network
    assert distributed.unwrap(network) is network


def test_a_network_keeps_a_part_that_is_called_module():
    network = torch.nn.Sequential()
    network.module = torch.nn.Linear(1, 1)
    assert distributed.unwrap(network) is network


def fail() -> None:
    raise FileNotFoundError("/data/none is missing")


def batches(rank: int) -> Iterator[int]:
    """Two batches; the second cannot be read on the middle rank."""
    yield 1
    if rank == 1:
        raise DataError("b.wav: cannot be read")
    yield 2


def join_before_the_group(rank: int) -> None:
    if rank == 1:
        raise DataError("no such device")
    distributed._exchange(None, None)


def long_validation(rank: int) -> None:
    """Rank 2 is stopped; the others notice before the end of their share."""
    if rank == 2:
        raise StopRun("stopped")
    for _ in range(2000):
        distributed.look_around()
        time.sleep(0.01)
    raise AssertionError("nobody noticed")


def one_rank(rank: int, port: int, folder: str) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(WORLD),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        CUDA_VISIBLE_DEVICES="",
    )

    def refuse(action: Callable[[], object]) -> tuple:
        try:
            with distributed.together():
                action()
        except (UserError, StopRun) as error:
            return str(error), distributed.is_shared(error)
        return ("not refused",)

    os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"
    first = refuse(lambda: join_before_the_group(rank))
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "2"
    options = distributed.init_process_group(RunOptions(), 60)
    seen = {
        "before the group": first,
        "device": options.device,
        "backend": options.distributed_backend,
        "place": (distributed.rank(), distributed.world_size()),
        "objects": distributed.gather_objects({"rank": rank}),
        # Rank r brings r + 1 examples of its own number.
        "examples": distributed.gather_examples(
            torch.full((2, rank + 1), float(rank)), batch_size=WORLD
        ),
        "from_main": distributed.run_on_main(os.getpid),
        "pid": os.getpid(),
    }
    try:
        distributed.run_on_main(fail)
    except FileNotFoundError as error:
        seen["error"] = str(error)
    # Still in step after the failure.
    seen["after"] = distributed.gather_objects(rank)
    distributed.look_around()  # nobody has refused
    seen["no refusal"] = refuse(lambda: None)
    seen["a batch"] = refuse(lambda: list(distributed.agreed(batches(rank))))
    seen["a stop"] = refuse(lambda: long_validation(rank))
    seen["in step"] = distributed.gather_objects(rank)
    torch.save(seen, f"{folder}/{rank}.pt")
    distributed.leave_process_group()


@pytest.mark.ddp
def test_three_ranks_see_the_same(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(one_rank, (port, str(tmp_path)), nprocs=WORLD)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    for rank, seen in enumerate(ranks):
        # No device was asked for, and no accelerator is there.
        assert (seen["device"], seen["backend"]) == ("cpu", "gloo")
        assert seen["place"] == (rank, WORLD)
        assert seen["objects"] == [{"rank": other} for other in range(WORLD)]
        assert seen["from_main"] == ranks[0]["pid"]
        assert seen["error"] == "/data/none is missing"
        assert seen["after"] == [0, 1, 2]
        assert seen["before the group"] == ("no such device", True)
        assert seen["no refusal"] == ("not refused",)
        assert seen["a batch"] == ("b.wav: cannot be read", True)
        assert seen["a stop"] == ("stopped", True)
        assert seen["in step"] == [0, 1, 2]
        examples_WKB = seen["examples"]
        assert examples_WKB.shape == (WORLD, 2, WORLD)
        for other in range(WORLD):
            present = other + 1
            assert bool((examples_WKB[other, :, :present] == other).all())
            assert bool(examples_WKB[other, :, present:].isnan().all())
