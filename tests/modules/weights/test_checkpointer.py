"""Checkpoints under faults: kills, damage, full disks, hostile files, many saves.

Kills are real: a forked child leaves by `os._exit` just before its n-th call that
changes the disk, for every n, and the parent plays the restarted job.
"""

import logging
import os
import pickle
import resource
import shutil
import signal
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hyperpyyaml import load_hyperpyyaml
from speechbrain.nnet.schedulers import NewBobScheduler
from torch import nn

from benchmarks.fault_cases.crash import (
    DAMAGES,
    FILES,
    Job,
    before_call,
    exit_status,
    flip_a_bit,
    in_child,
    kill_at_every_call,
    leftovers,
    restarted,
    start_child,
)
from benchmarks.fault_cases.hostile import Canary
from modules.runtime.errors import (
    CheckpointMismatch,
    CheckpointSaveError,
    DamagedCheckpoint,
    FolderInUse,
    NonFiniteWeights,
)
from modules.runtime.run_lock import RunLock
from modules.runtime.tensors import is_finite
from modules.weights import checkpoint_files
from modules.weights.checkpoint_files import check_fit
from modules.weights.checkpointer import AtomicCheckpointer
from modules.weights.ema import EMA

# ------------------------------------------------------------------------ kills


def test_kill_at_every_call_of_a_save_gives_old_or_new(tmp_path):
    folder = tmp_path / "save"
    outcomes = kill_at_every_call(
        folder, lambda f: Job(f).save(1), lambda f: Job(f).save(2)
    )
    assert all(values in ({1}, {2}) for values in outcomes)
    assert outcomes[0] == {1} and outcomes[-1] == {2}
    assert len(outcomes) > 10
    # One call publishes: no old state after a new one.
    assert outcomes == sorted(outcomes, key=max)


def test_kill_at_every_call_of_save_and_keep_only_gives_old_or_new(tmp_path):
    def action(folder: Path) -> None:
        job = Job(folder, 2)
        job.checkpointer.save_and_keep_only()

    outcomes = kill_at_every_call(tmp_path / "keep", lambda f: Job(f).save(1), action)
    assert all(values in ({1}, {2}) for values in outcomes)
    assert outcomes == sorted(outcomes, key=max)
    assert outcomes.count({2}) > 4  # the kills during the deletion


def test_leftovers_of_an_earlier_job_go_with_the_first_save(tmp_path):
    for name in (".tmp-1", ".trash-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.ckpt").write_bytes(b"half")
    Job(tmp_path).save(1)
    assert leftovers(tmp_path) == []


def test_first_save_killed_leaves_a_fresh_start(tmp_path):
    folder = tmp_path / "first"
    outcomes = kill_at_every_call(folder, Job, lambda f: Job(f).save(2))
    assert all(values in ({-1}, {2}) for values in outcomes)


def test_everything_is_flushed_before_it_is_published(tmp_path, monkeypatch):
    calls = []
    fsync, rename = os.fsync, os.rename

    def record_fsync(descriptor: int) -> None:
        calls.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def record_rename(source: Path, target: Path) -> None:
        calls.append(f"{source.name} -> {target.name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    folder = tmp_path / "save"
    Job(folder).save(1)
    tmp = calls[4]
    files = ["epochs.ckpt", "model.ckpt", "optimizer.ckpt", "CKPT.yaml"]
    assert calls == [*files, tmp, f"{tmp} -> CKPT+00000001", "save"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left")])
def test_exception_at_every_call_of_a_save_cleans_up_itself(tmp_path, error):
    for number in range(1, 100):
        folder = tmp_path / str(number)
        job = Job(folder)
        job.save(1)
        failed = None
        with pytest.MonkeyPatch.context() as patch:

            def fail() -> None:
                raise error

            before_call(number, fail, patch.setattr)
            try:
                job.save(2)
            except (KeyboardInterrupt, CheckpointSaveError) as caught:
                failed = caught
        assert leftovers(folder) == []
        assert restarted(folder) in ([{1}, {2}] if failed else [{2}])
        if failed is None:
            assert number > 8
            return
        if isinstance(error, OSError):
            assert str(folder) in str(failed) and "No space left" in str(failed)
            assert "bytes needed" in str(failed) and "\n" not in str(failed)
    raise AssertionError("the save never ended")


def test_disk_full_is_one_clear_line_and_saving_works_again_with_space(tmp_path):
    """A file size limit stands in for a full disk: writes really fail."""
    job = Job(tmp_path, width=256)  # 0.26 MB a matrix
    job.save(1)

    def full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(CheckpointSaveError) as caught:
            job.save(2)
        message = str(caught.value)
        assert str(tmp_path) in message and "\n" not in message.split(":")[0]
        needed = int(message.split("about ")[1].split(" bytes")[0])
        assert 3 * 256 * 257 * 4 <= needed < 3 * 256 * 257 * 4 + 100  # + 2 counters

    assert in_child(full) == 0
    assert leftovers(tmp_path) == []
    job = Job(tmp_path, width=256)
    assert job.checkpointer.recover_if_possible() is not None
    assert job.values() == {1}
    job.save(3)
    assert job.checkpointer.find_checkpoint().meta["save_counter"] == 2


# ----------------------------------------------------------------------- damage


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_newest_falls_back_to_the_older_one(tmp_path, caplog, file, damage):
    job = Job(tmp_path)
    job.save(1)
    job.save(2)
    newest = job.checkpointer.find_checkpoint().path
    damage(newest / file)
    with caplog.at_level(logging.WARNING):
        assert restarted(tmp_path) == {1}  # every part of it: nothing is mixed
    (warning,) = caplog.messages
    assert str(newest) in warning and file in warning

    # The run goes on from the older one, and what it saves counts as the newest.
    job = Job(tmp_path)
    job.checkpointer.recover_if_possible()
    job.put(3)
    job.checkpointer.save_and_keep_only()
    assert restarted(tmp_path) == {3}


def test_every_flipped_byte_of_the_meta_file_is_seen(tmp_path):
    job = Job(tmp_path)
    job.save(1, meta={"si-snr": 3.25})
    path = job.checkpointer.find_checkpoint().path
    good = (path / "CKPT.yaml").read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1
        (path / "CKPT.yaml").write_bytes(bad)
        with pytest.raises(DamagedCheckpoint):
            checkpoint_files.read_checkpoint(path)


def test_only_damaged_checkpoints_is_an_error_and_not_a_fresh_start(tmp_path):
    job = Job(tmp_path)
    job.save(1)
    flip_a_bit(job.checkpointer.find_checkpoint().path / "model.ckpt")
    with pytest.raises(DamagedCheckpoint, match="model.ckpt does not match its digest"):
        restarted(tmp_path)


def test_links_and_manifests_that_lead_outside_are_left_out(tmp_path, caplog):
    saved = Job(tmp_path / "a", value=1).checkpointer.save_checkpoint()
    job = Job(tmp_path / "b", value=2)
    job.checkpointer.save_checkpoint()
    link = tmp_path / "b" / "CKPT+00000009"
    link.symlink_to(saved.path, target_is_directory=True)
    (tmp_path / "b" / "best").symlink_to("CKPT+00000001", target_is_directory=True)
    copy = shutil.copytree(saved.path, tmp_path / "b" / "CKPT+00000008")
    meta = yaml.safe_load((copy / "CKPT.yaml").read_text())
    manifest = meta["manifest"]
    manifest["../../secret.ckpt"] = manifest.pop("model.ckpt")
    os.rename(copy / "model.ckpt", tmp_path / "secret.ckpt")
    body = yaml.safe_dump(meta).encode()
    digest = checkpoint_files._digest(body).encode()
    (copy / "CKPT.yaml").write_bytes(
        body + checkpoint_files.DIGEST_LINE + digest + b"\n"
    )
    job.put(5)
    assert job.checkpointer.recover_if_possible().path.name == "CKPT+00000001"
    assert job.values() == {2}
    said = [text for text in caplog.messages if "is damaged and left out" in text]
    assert len(said) == 2 and any("it is a link" in text for text in said)
    assert any("'../../secret.ckpt' is no file in its folder" in text for text in said)


def test_a_damaged_one_does_not_stand_for_those_without_the_metric(tmp_path):
    """A run that never validates has no best one, damaged checkpoint or not."""
    job = Job(tmp_path)
    job.save(1)
    job.save(2)
    flip_a_bit(job.checkpointer.find_checkpoint().path / "model.ckpt")
    fresh = Job(tmp_path)
    assert fresh.checkpointer.recover_if_possible(max_key="si-snr") is None
    assert restarted(tmp_path) == {1}


def test_best_by_metric_skips_the_damaged_one(tmp_path):
    job = Job(tmp_path)
    for value, metric in [(1, 5.0), (2, 9.0), (3, 7.0)]:
        job.save(value, meta={"si-snr": metric})
    best = job.checkpointer.find_checkpoint(max_key="si-snr")
    assert best.meta["si-snr"] == 9.0
    flip_a_bit(best.path / "model.ckpt")
    assert restarted(tmp_path, max_key="si-snr") == {3}
    assert restarted(tmp_path, min_key="si-snr") == {1}
    with pytest.raises(DamagedCheckpoint):
        job.checkpointer.load_checkpoint(best)


# --------------------------------------------------------- what fits and what not


def test_absent_recoverable_is_named_and_nothing_is_loaded(tmp_path):
    Job(tmp_path).save(1)
    job = Job(tmp_path, value=5)
    job.checkpointer.add_recoverable("ema", EMA().attach(job.model))
    with pytest.raises(RuntimeError, match="holds no 'ema', only epochs, model"):
        job.checkpointer.recover_if_possible()
    assert job.values() == {5}
    job.checkpointer.optional_recoverables["ema"] = True
    assert job.checkpointer.recover_if_possible() is not None
    assert job.values() == {1}


def test_other_network_is_an_error_that_names_it_and_no_fallback(tmp_path):
    Job(tmp_path, width=4).save(1)
    with pytest.raises(CheckpointMismatch) as error:
        Job(tmp_path, width=5).checkpointer.recover_if_possible()
    message = str(error.value)
    assert message.startswith("cannot load 'model' from checkpoint ")
    assert f"{tmp_path}/CKPT+" in message and len(message) < 400
    assert "instance weight: [4, 4] in the file, [5, 5] in the model" in message
    assert "; give the same sizes" in message


def test_a_network_with_more_or_fewer_tensors_is_said_so():
    one, two = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
    with pytest.raises(
        CheckpointMismatch, match=r"1 of 2 .* bias: absent in the file, \[2\]"
    ):
        check_fit(one, two.state_dict())
    with pytest.raises(CheckpointMismatch, match=r"bias: \[2\] in the file, absent in"):
        check_fit(two, one.state_dict())
    check_fit(one, nn.Linear(2, 2).state_dict())


def test_ema_is_saved_and_loaded_without_hooks(tmp_path):
    model = nn.Linear(2, 2)
    ema = EMA(0.5, warmup=False).attach(model)
    with torch.no_grad():
        model.weight.add_(1)
    ema.update()
    recoverables = {"model": model, "ema": ema}
    AtomicCheckpointer(tmp_path, recoverables).save_checkpoint()
    other = nn.Linear(2, 2)
    other_ema = EMA(0.5, warmup=False).attach(other)
    AtomicCheckpointer(tmp_path, {"model": other, "ema": other_ema}).load_checkpoint(
        AtomicCheckpointer(tmp_path).find_checkpoint()
    )
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(
        other_ema.state_dict()["shadow"]["weight"], ema.state_dict()["shadow"]["weight"]
    )
    with ema.applied(), pytest.raises(RuntimeError, match="inside applied"):
        AtomicCheckpointer(tmp_path, recoverables).save_checkpoint()


def test_built_from_hyperpyyaml(tmp_path):
    hparams = load_hyperpyyaml(
        f"""
        model: !new:torch.nn.Linear [2, 2]
        checkpointer: !new:modules.weights.checkpointer.AtomicCheckpointer
            checkpoints_dir: {tmp_path}/save
            recoverables:
                model: !ref <model>
        """
    )
    ckpt = hparams["checkpointer"].save_checkpoint(name="best")
    assert ckpt.path.name == "CKPT+best+00000001"
    again = hparams["checkpointer"].save_checkpoint(name="best")
    assert again.path != ckpt.path and ckpt.path.exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["weight", "buffer", "optimizer"])
def test_nonfinite_state_is_not_saved(tmp_path, bad, where):
    job = Job(tmp_path)
    job.save(1)
    if where == "weight":
        nn.init.constant_(job.model.bias, bad)
    elif where == "buffer":
        job.model.register_buffer("mean", torch.tensor([0.0, bad]))
    else:
        job.optimizer.state[job.model.bias]["exp_avg"][1] = bad
    named = {"weight": "model.bias", "buffer": "model.mean", "optimizer": "exp_avg"}
    with pytest.raises(NonFiniteWeights, match=named[where]):
        job.checkpointer.save_and_keep_only()
    assert restarted(tmp_path) == {1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_finite_is_told_from_nan_and_inf_anywhere(dtype):
    for place in (0, 3, 6):
        for bad in (float("nan"), float("inf"), -float("inf")):
            tensor = torch.linspace(-3, 3, 7).to(dtype)
            assert is_finite(tensor)
            tensor[place] = bad
            assert not is_finite(tensor)
    assert is_finite(torch.tensor([2**62, -1]))
    assert is_finite(torch.zeros(0))


def test_large_finite_weights_are_saved(tmp_path):
    job = Job(tmp_path)
    job.save(3e38)  # their sum overflows
    assert job.checkpointer.find_checkpoint() is not None


# ----------------------------------------------------------------- order, keeping


def test_clock_set_back_changes_nothing(tmp_path, monkeypatch):
    job = Job(tmp_path)
    now = time.time()
    for value in (1, 2, 3):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda value=value: now - 86400 * value)
            job.put(value)
            job.checkpointer.save_and_keep_only()
    assert restarted(tmp_path) == {3}
    assert len(job.checkpointer.list_checkpoints()) == 1


def test_keeps_the_newest_and_the_best_and_never_ranks_nan(tmp_path):
    job = Job(tmp_path)
    metrics = [3.0, 8.0, float("nan"), 5.0, float("inf"), 8.0, 4.0]
    for value, metric in enumerate(metrics):
        job.put(value)
        job.checkpointer.save_and_keep_only(meta={"m": metric}, max_keys=["m"])
    kept = job.checkpointer.list_checkpoints()
    assert [ckpt.meta["m"] for ckpt in kept] == [4.0, 8.0]
    assert restarted(tmp_path, max_key="m") == {5}  # of equals the newer


def test_predicate_protects_the_others(tmp_path):
    job = Job(tmp_path)
    for value in range(4):
        job.save(value)
    for value in range(4, 7):  # the way Brain saves inside an epoch
        job.put(value)
        job.checkpointer.save_and_keep_only(
            meta={"intra": True},
            end_of_epoch=False,
            ckpt_predicate=lambda ckpt: "intra" in ckpt.meta,
        )
    kept = job.checkpointer.list_checkpoints()
    assert [ckpt.meta["save_counter"] for ckpt in kept] == [7, 4, 3, 2, 1]
    job.checkpointer.recover_if_possible()
    assert job.epochs.current == 5  # the interrupted epoch is run again


def test_the_newest_are_spared_whatever_the_keys_say(tmp_path):
    job = Job(tmp_path)
    for value in range(5):
        job.save(value, meta={"loss": value})
    only_low = {"ckpt_predicate": lambda ckpt: ckpt.meta["loss"] < 4}
    delete = job.checkpointer.delete_checkpoints
    delete(num_to_keep=1, min_keys=["loss"], importance_keys=[], spare=2, **only_low)
    assert [c.meta["loss"] for c in job.checkpointer.list_checkpoints()] == [4, 3, 0]
    delete(num_to_keep=0, spare=2)
    assert [c.meta["loss"] for c in job.checkpointer.list_checkpoints()] == [4, 3]


def test_num_to_keep(tmp_path):
    job = Job(tmp_path)
    for value in range(5):
        job.save(value, meta={"loss": value})
    job.checkpointer.delete_checkpoints(num_to_keep=2, min_keys=["loss"])
    left = [ckpt.meta["loss"] for ckpt in job.checkpointer.list_checkpoints()]
    assert left == [4, 3, 1, 0]
    with pytest.raises(ValueError, match="num_to_keep"):
        job.checkpointer.delete_checkpoints(num_to_keep=-1)
    with pytest.raises(ValueError, match="only"):
        job.checkpointer.find_checkpoints(min_key="loss", max_key="loss")


def test_the_last_of_200_saves_takes_no_longer_than_the_first(tmp_path):
    job = Job(tmp_path)
    seconds = []
    for _ in range(200):
        start = time.process_time()
        job.checkpointer.save_and_keep_only()
        seconds.append(time.process_time() - start)
    early, late = statistics.median(seconds[:30]), statistics.median(seconds[-30:])
    assert late < 1.5 * early + 1e-3
    assert len(list(tmp_path.iterdir())) == 2  # with the link `latest`


def test_links_lead_to_the_newest_and_the_best(tmp_path):
    job = Job(tmp_path)
    for number, score in enumerate([1.0, 3.0, 2.0], start=1):
        job.put(number)
        job.checkpointer.save_and_keep_only(meta={"m": score}, max_keys=["m"])
    names = {name: os.readlink(tmp_path / name) for name in ("best", "latest")}
    assert names == {"best": "CKPT+00000002", "latest": "CKPT+00000003"}
    assert len(job.checkpointer.list_checkpoints()) == 2
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()  # somebody's own: it stays, and nothing fails
    (tmp_path / ".tmp-0").symlink_to("CKPT+00000001")  # of a killed job
    again = Job(tmp_path, 4)
    again.checkpointer.save_and_keep_only(meta={"m": 4.0}, max_keys=["m"])
    assert os.readlink(tmp_path / "best") == "CKPT+00000004"
    assert (tmp_path / "latest").is_dir() and not (tmp_path / ".tmp-0").is_symlink()
    assert restarted(tmp_path) == {4}
    found = AtomicCheckpointer(tmp_path / "best").list_checkpoints()
    assert found == [], "a link is no folder of checkpoints"


def test_meta_is_plain_python_and_survives_the_round_trip(tmp_path):
    job = Job(tmp_path)
    given = {
        "float": np.float64(0.1),
        "half": np.float32(0.5),
        "int": np.int64(7),
        "bool": np.bool_(True),
        "tensor": torch.tensor(2.5),
        "array": np.arange(3),
        "path": Path("/data/x"),
        "tuple": (1, (np.float64(2.0), "ä")),
        "nested": {"lr": torch.tensor([1e-5, 2e-5], dtype=torch.float64)},
        "none": None,
    }
    expected = {
        "float": 0.1,
        "half": 0.5,
        "int": 7,
        "bool": True,
        "tensor": 2.5,
        "array": [0, 1, 2],
        "path": "/data/x",
        "tuple": [1, [2.0, "ä"]],
        "nested": {"lr": [1e-5, 2e-5]},
        "none": None,
    }
    job.save(1, meta=given)
    meta = AtomicCheckpointer(tmp_path).find_checkpoint().meta
    assert {key: meta[key] for key in expected} == expected
    assert {type(meta[key]) for key in ("float", "int", "bool")} == {float, int, bool}
    with pytest.raises(TypeError, match="meta.bad"):
        job.save(2, meta={"bad": object()})
    assert restarted(tmp_path) == {1}


# --------------------------------------------------------------------- hostile


def hostile_checkpoint(folder: Path, name: str, content: object) -> None:
    """An intruder's checkpoint, newer than all others and with right digests."""
    tmp = folder / "tmp"
    tmp.mkdir()
    (tmp / f"{name}.ckpt").write_bytes(pickle.dumps(content, protocol=2))
    checkpoint_files.seal(tmp, {"end-of-epoch": True, "save_counter": 99})
    tmp.rename(folder / "CKPT+00000099")


@pytest.mark.parametrize("unsafe_environment", [False, True])
@pytest.mark.parametrize("kind", ["model", "foreign hook"])
def test_code_in_a_weights_file_does_not_run(
    tmp_path, monkeypatch, unsafe_environment, kind
):
    if unsafe_environment:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    before = dict(os.environ)
    # SpeechBrain's schedulers call torch.load without weights_only.
    victim = nn.Linear(2, 2) if kind == "model" else NewBobScheduler(0.1)
    folder, canary = tmp_path / "save", tmp_path / "canary"
    checkpointer = AtomicCheckpointer(folder, {"victim": victim})
    hostile_checkpoint(folder, "victim", Canary(canary))
    with pytest.raises(RuntimeError, match="cannot load 'victim'"):
        checkpointer.recover_if_possible()
    assert not canary.exists()
    assert dict(os.environ) == before
    # The canary itself works: a careless reader would have run it.
    pickle.loads((folder / "CKPT+00000099" / "victim.ckpt").read_bytes())
    assert canary.exists()


def test_code_in_the_meta_file_does_not_run(tmp_path, monkeypatch):
    folder, canary = tmp_path / "save", tmp_path / "canary"
    checkpointer = AtomicCheckpointer(folder, {"model": nn.Linear(2, 2)})
    attack = f"!!python/object/apply:os.system ['touch {canary}']"
    monkeypatch.setattr(
        checkpoint_files.yaml, "safe_dump", lambda *_, **__: f"manifest: {attack}\n"
    )
    hostile_checkpoint(folder, "model", {})
    with pytest.raises(DamagedCheckpoint, match="cannot be read"):
        checkpointer.recover_if_possible()
    assert not canary.exists()


def test_numpy_scalars_in_a_scheduler_can_be_loaded_again(tmp_path):
    scheduler = NewBobScheduler(0.1)
    scheduler(np.float64(3.0))
    AtomicCheckpointer(tmp_path, {"lr": scheduler}).save_checkpoint()
    fresh = NewBobScheduler(0.5)
    AtomicCheckpointer(tmp_path, {"lr": fresh}).recover_if_possible()
    assert fresh.metric_values == [3.0]


# ------------------------------------------------------------------- two ranks


def on_two_ranks(folder: Path, function: Callable[[int], None]) -> None:
    """Run the function in two forked gloo ranks; both must return without error."""

    def run(rank: int) -> None:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=2,
            timeout=timedelta(seconds=15),
        )
        function(rank)
        torch.distributed.barrier()

    children = [start_child(lambda rank=rank: run(rank)) for rank in range(2)]
    assert [exit_status(child) for child in children] == [0, 0]


@pytest.mark.ddp
def test_rank_0_writes_both_load_and_errors_reach_both(tmp_path):
    folder = tmp_path / "save"

    def scenario(rank: int) -> None:
        job = Job(folder, value=1 + rank)
        job.checkpointer.save_and_keep_only(meta={"m": 1.0}, max_keys=["m"])
        job.checkpointer.save_and_keep_only(meta={"m": 0.0}, max_keys=["m"])
        assert job.checkpointer.find_checkpoint(max_key="m").meta["m"] == 1.0
        job.put(5)
        job.checkpointer.recover_if_possible()
        assert job.values() == {1}  # rank 0's
        # Rank 0 alone has a NaN, or a full disk: both hear of it.
        if rank == 0:
            nn.init.constant_(job.model.bias, float("nan"))
        with pytest.raises(NonFiniteWeights):
            job.checkpointer.save_checkpoint()
        job.put(1)
        with pytest.MonkeyPatch.context() as patch:
            if rank == 0:

                def no_space(*_: object) -> None:
                    raise OSError(28, "No space left")

                patch.setattr(os, "fsync", no_space)
            with pytest.raises(CheckpointSaveError, match="No space left"):
                job.checkpointer.save_checkpoint()
        # A load that fails on rank 1 fails on rank 0.
        if rank == 1:
            job.checkpointer.recoverables["model"] = nn.Linear(7, 7)
        with pytest.raises(RuntimeError, match="cannot load 'model'"):
            job.checkpointer.recover_if_possible()
        with pytest.raises(FolderInUse):  # rank 0 fails to lock, rank 1 hears of it
            RunLock(tmp_path, patience=0).acquire()

    with RunLock(tmp_path):
        on_two_ranks(tmp_path, scenario)
    assert leftovers(folder) == []
    assert len(AtomicCheckpointer(folder).list_checkpoints()) == 2


# ------------------------------------------------------------------------- lock


def test_second_job_is_told_who_holds_the_folder(tmp_path):
    with RunLock(tmp_path):

        def second() -> None:
            with pytest.raises(FolderInUse) as caught:
                RunLock(tmp_path, patience=0).acquire()
            assert f"process {os.getppid()} on {os.uname().nodename}" in str(
                caught.value
            )
            assert str(tmp_path) in str(caught.value)

        assert in_child(second) == 0
        with pytest.raises(FolderInUse):
            RunLock(tmp_path, patience=0).acquire()
    with RunLock(tmp_path, patience=0):  # free again
        pass


def test_lock_dies_with_its_process_even_when_a_worker_lives_on(tmp_path):
    """A data worker that was forked under the lock must not keep the restart out."""
    ready, worker_alive = os.pipe()

    def job() -> None:
        RunLock(tmp_path).acquire()
        if os.fork() == 0:  # the worker
            os.write(worker_alive, f"{os.getpid()}\n".encode())
            time.sleep(30)
            os._exit(0)
        time.sleep(30)

    pid = start_child(job)
    worker = int(os.read(ready, 20))
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.kill(worker, 0)  # still there
        with RunLock(tmp_path, patience=0):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_lock_waits_for_a_holder_that_is_about_to_end(tmp_path):
    def job() -> None:
        with RunLock(tmp_path):
            time.sleep(0.5)

    pid = start_child(job)
    while not (tmp_path / ".lock").exists() or not (tmp_path / ".lock").read_text():
        time.sleep(0.01)
    with RunLock(tmp_path, patience=10):
        pass
    assert exit_status(pid) == 0
