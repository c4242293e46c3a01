"""Two gloo ranks: equal weights, no hang, the gradient of one large batch."""

import os
import subprocess
import sys

import pytest
import torch
from speechbrain.utils.run_opts import RunOptions

from tests import ROOT
from tests.e2e import ddp_worker
from tests.e2e.ddp_worker import BATCH, FAULTS, STEPS, UNCLIPPED
from tests.toy import same_weights, weights_of

pytestmark = pytest.mark.ddp
NAMES = [fault.__name__ for fault in FAULTS]


def torchrun(*arguments: str, timeout: float = 120) -> str:
    """Run on 2 ranks; the timeout is what makes a hang a failure."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    result = subprocess.run(
        [*command, "--nproc_per_node=2", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("ddp")
    torchrun("tests/e2e/ddp_worker.py", str(out))
    return [torch.load(out / f"rank{rank}.pt") for rank in (0, 1)]


NORMED = ["norm_nothing", "norm_inf_batch", "norm_nan_inside"]


@pytest.mark.parametrize("fault", NAMES + NORMED)
def test_ranks_stay_bit_identical_whatever_one_of_them_sees(ranks, fault):
    first, second = (results[fault] for results in ranks)
    assert torch.equal(first["weights"], second["weights"])
    assert torch.isfinite(first["weights"]).all()
    for name in first.keys() - {"weights"}:
        assert first[name] == second[name], name


def test_what_the_main_process_does_alone_exchanges_nothing(ranks):
    """Else what follows gets another exchange's answer, or the others wait."""
    for results in ranks:
        assert results["alone"] == (1, [0, 1])


def test_counts_are_those_of_all_ranks(ranks):
    everything = STEPS * 2 * BATCH
    counts = {
        fault: tuple(
            ranks[0][fault][name]
            for name in ("kept", "nonfinite", "optimizer_steps", "skipped")
        )
        for fault in NAMES
    }
    assert counts["nothing"] == (everything, 0, STEPS, 0)
    assert counts["nan_item"] == (everything - 1, 1, STEPS, 0)
    assert counts["inf_batch"] == (everything - BATCH, BATCH, STEPS, 0)
    assert counts["easy_on_one"] == (everything - BATCH, 0, STEPS, 0)
    assert counts["under_threshold"] == (everything - BATCH, 0, STEPS, 0)
    silent, names = ranks[0]["easy_on_one"]["silent"]
    assert silent == BATCH and names == [f"step1example{i}" for i in (1, 3, 5, 7)]
    assert ranks[0]["inf_batch"]["silent"] == (0, []), "zeroed is not silent"
    names = [f"step1example{i}" for i in (1, 3, 5, 7)]
    assert ranks[1]["under_threshold"]["dropped"] == (BATCH, names)
    assert ranks[1]["over_limit"]["over_limit"] == (BATCH, names)
    assert ranks[1]["over_limit"]["dropped"] == (0, [])
    # NaN from inside reaches every gradient: only the whole step can be skipped.
    assert counts["nan_inside"] == (everything - BATCH, BATCH, STEPS - 1, 1)


@pytest.mark.parametrize(
    ("run", "options"), [("nothing", {}), ("unclipped", UNCLIPPED)]
)
def test_two_ranks_of_b_are_one_process_of_2b(ranks, tmp_path, run, options):
    brain = ddp_worker.make_brain(
        tmp_path, 2 * BATCH, RunOptions.from_dictionary({"device": "cpu"}), **options
    )
    alone = ddp_worker.train(brain, ddp_worker.nothing, rank=0, world_size=1)
    together = ranks[0][run]
    assert torch.allclose(together["weights"], alone["weights"], atol=1e-6, rtol=0)
    assert together["loss"] == pytest.approx(alone["loss"], abs=1e-5)


def test_batch_norm_sees_all_ranks_as_one_batch(ranks, tmp_path):
    options = {"network": ddp_worker.NormedSeparator, **UNCLIPPED}
    opts = RunOptions.from_dictionary({"device": "cpu"})
    brain = ddp_worker.make_brain(tmp_path, 2 * BATCH, opts, **options)
    alone = ddp_worker.train(brain, ddp_worker.nothing, rank=0, world_size=1)
    together = ranks[0]["norm_nothing"]
    assert torch.allclose(together["weights"], alone["weights"], atol=1e-5, rtol=0)
    for ours, theirs in zip(together["learnt"], alone["learnt"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("fault", ["norm_inf_batch", "norm_nan_inside"])
def test_batch_norm_learns_nothing_of_a_bad_batch(ranks, fault):
    *_, batches = ranks[0][fault]["learnt"]
    assert batches == STEPS - 1
    assert ranks[0]["norm_nothing"]["learnt"][-1] == STEPS


@pytest.mark.slow
def test_torchrun_trains_shares_the_test_set_and_resumes(toy_arguments, tmp_path):
    arguments = {"examples_per_epoch": 7, "ema_decay": 0.9, "ckpt_interval_steps": 2}
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    output = torchrun("train.py", *toy_arguments(output_folder=whole, **arguments))
    rows = (whole / "test_results.csv").read_text().splitlines()
    assert len(rows) == 3, "merged once, without the examples that fill up a rank"
    assert output.count("SI-SNRi") == 1

    for epochs in (1, 2):  # the second call resumes after the first epoch
        torchrun(
            "train.py",
            *toy_arguments(output_folder=halves, **arguments | {"N_epochs": epochs}),
        )
    assert same_weights(weights_of(halves), weights_of(whole))
