"""Collectives: the same call on one process and on three gloo ranks."""

import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from speechbrain.utils.run_opts import RunOptions

from modules.runtime import distributed

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


def one_rank(rank: int, port: int, folder: str) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(WORLD),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        CUDA_VISIBLE_DEVICES="",
    )
    options = distributed.init_process_group(RunOptions(), 60)
    seen = {
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
        examples_WKB = seen["examples"]
        assert examples_WKB.shape == (WORLD, 2, WORLD)
        for other in range(WORLD):
            present = other + 1
            assert bool((examples_WKB[other, :, :present] == other).all())
            assert bool(examples_WKB[other, :, present:].isnan().all())
