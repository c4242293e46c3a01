"""Two machines, which are two network namespaces: they meet by address alone."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest

from tests import ROOT
from tests.toy import same_weights, weights_of

pytestmark = [pytest.mark.ddp, pytest.mark.slow]
PATIENCE = 300.0  # seconds, which make a hang a failure
ADDRESSES = ("10.213.7.1", "10.213.7.2")


def ip(*arguments: str) -> int:
    return subprocess.run(["ip", *arguments], capture_output=True).returncode


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Two namespaces joined by a cable; nothing else leads into or out of them."""
    names = [f"machine{number}of{os.getpid()}" for number in (0, 1)]
    ends = [f"end{number}of{os.getpid()}"[:15] for number in (0, 1)]
    if shutil.which("ip") is None or ip("netns", "add", names[0]):
        pytest.skip("needs the command `ip` and the right to add a network namespace")
    ip("netns", "add", names[1])
    try:
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(names, ends, ADDRESSES, strict=True):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "link", "set", end, "name", "cable")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            if ip("-n", name, "link", "set", "lo", "up"):
                pytest.skip("needs the right to set up a network namespace")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def start(
    machine: str, number: int, arguments: Sequence[str], *before: str
) -> subprocess.Popen:
    """Start the rank of one machine, as docs/scaling.md says."""
    return subprocess.Popen(
        [
            *("ip", "netns", "exec", machine, *before, sys.executable),
            *("-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"),
            *(f"--node_rank={number}", f"--master_addr={ADDRESSES[0]}"),
            *("--master_port=29511", "train.py", *arguments),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_run_on_two_machines_of_which_one_dies_ends_as_one_on_one_machine(
    machines, toy_arguments, tmp_path
):
    """The other machine stops by itself, and the same commands resume."""
    given = {"valid_every": 0, "output_folder": tmp_path / "apart"}
    arguments = toy_arguments(N_epochs=40, **given)
    ranks = [start(machine, n, arguments) for n, machine in enumerate(machines)]
    said = ""
    for line in ranks[0].stdout:
        said += line
        if "Going into epoch 2" in line:
            break
    pids = subprocess.check_output(["ip", "netns", "pids", machines[1]], text=True)
    for pid in pids.split():
        os.kill(int(pid), signal.SIGKILL)
    said += ranks[0].communicate(timeout=PATIENCE)[0]
    ranks[1].communicate(timeout=PATIENCE)
    assert ranks[0].returncode == 1, said
    epochs = 1 + said.count("Going into epoch")
    assert epochs < 40
    arguments = toy_arguments(N_epochs=epochs, **given)
    ranks = [start(machine, n, arguments) for n, machine in enumerate(machines)]
    resumed = [rank.communicate(timeout=PATIENCE)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "".join(resumed)
    assert "Resuming after epoch" in resumed[0]
    assert "SI-SNRi" in resumed[0] and "SI-SNRi" not in resumed[1]
    given["output_folder"] = tmp_path / "here"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", "train.py"]
    command += toy_arguments(N_epochs=epochs, **given)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    apart, here = weights_of(tmp_path / "apart"), weights_of(tmp_path / "here")
    assert same_weights(apart, here)


def test_a_folder_that_the_machines_do_not_share_is_named(
    machines, toy_arguments, tmp_path
):
    folder = tmp_path / "it"
    folder.mkdir()
    alone = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs none {folder} && exec "$@"')
    if subprocess.run([*alone, "sh", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    arguments = toy_arguments(output_folder=folder)
    ranks = [
        start(machines[0], 0, arguments),
        start(machines[1], 1, arguments, *alone, "sh"),
    ]
    said = [rank.communicate(timeout=PATIENCE)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1], "".join(said)
    assert f"error: {folder}/save/train.csv: no such manifest" in said[0]
    assert "let all machines of a run share this folder" in said[0]
