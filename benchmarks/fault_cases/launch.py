"""Set up the fault, then run train.py unchanged: the program that the bench starts.

    python -m benchmarks.fault_cases.launch FILE.yaml --key=value ...

`FAULTS` (JSON) in the environment says what goes wrong when; `FAULTS_MUTATION` names a
safeguard to disable; into the folder `FAULTS_DUMP` each rank writes what it holds after
every epoch; to the file `FAULTS_STEPS` rank 0 appends a line for every step, the number
of torchrun's attempt. `curves.png` and env.log (what pip and git report), most of a toy
job's time, are made only with `FAULTS_DRAW`. Nothing but this file reads these
variables.
"""

import contextlib
import errno
import importlib
import json
import os
import resource
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from speechbrain import Stage

from benchmarks.fault_cases import mutations
from modules.data import track_levels, utterances
from modules.data.batch import Batch
from modules.losses.choice import Terms
from modules.monitor import records
from modules.monitor.logs import RunLog
from modules.runtime import distributed
from modules.runtime.errors import HparamsError
from recipes.separation import Separation
from recipes.speech import SpeechSeparation

ROOT = Path(__file__).parents[2]
FAULTS, MUTATION = "FAULTS", "FAULTS_MUTATION"
DUMP, STEPS, DRAW = "FAULTS_DUMP", "FAULTS_STEPS", "FAULTS_DRAW"

# --------------------------------------------------------- faults in a training step


@contextlib.contextmanager
def die(brain: Separation, batch: Batch) -> Iterator[None]:
    """Kill the process before the step."""
    os.kill(os.getpid(), signal.SIGKILL)
    yield


@contextlib.contextmanager
def nan_item(brain: Separation, batch: Batch) -> Iterator[None]:
    """Put one NaN sample into one example."""
    batch.mix[0, ..., 5] = float("nan")
    yield


@contextlib.contextmanager
def inf_batch(brain: Separation, batch: Batch) -> Iterator[None]:
    """Put Inf into all targets."""
    batch.src[:] = float("inf")
    yield


@contextlib.contextmanager
def silent(brain: Separation, batch: Batch) -> Iterator[None]:
    """Silence the targets, so that nothing can be scored."""
    batch.src[:] = 0
    yield


@contextlib.contextmanager
def uncounted(brain: Separation, batch: Batch) -> Iterator[None]:
    """Make the first example one that only fills up a rank, and does not count."""
    batch.counts_B[0] = False
    yield


@contextlib.contextmanager
def easy(brain: Separation, batch: Batch) -> Iterator[None]:
    """Make every loss better than the threshold."""
    original = brain.compute_objectives

    def perfect(*args: object) -> Terms:
        terms = original(*args)
        return terms._replace(loss_BK=0 * terms.loss_BK - 99)

    brain.compute_objectives = perfect
    yield
    del brain.compute_objectives


@contextlib.contextmanager
def nan_inside(brain: Separation, batch: Batch) -> Iterator[None]:
    """Make the network return NaN for finite input."""
    separator = distributed.unwrap(brain.modules["separator"])
    hook = separator.register_forward_hook(lambda *args: args[2] * float("nan"))
    yield
    hook.remove()


@contextlib.contextmanager
def nan_gradient(brain: Separation, batch: Batch) -> Iterator[None]:
    """Put one NaN into one gradient."""
    first = next(brain.modules.parameters())

    def spoil(grad: torch.Tensor) -> torch.Tensor:
        return grad.index_fill(0, torch.tensor([0]), float("nan"))

    hook = first.register_hook(spoil)
    yield
    hook.remove()


@contextlib.contextmanager
def nan_weights(brain: Separation, batch: Batch) -> Iterator[None]:
    """Set a weight to NaN for good."""
    with torch.no_grad():
        next(brain.modules.parameters())[0] = float("nan")
    yield


IN_STEP = {
    fault.__name__: fault
    for fault in (
        *(die, nan_item, inf_batch, silent, uncounted, easy),
        *(nan_inside, nan_gradient, nan_weights),
    )
}


def _attempt() -> int:
    """Return how often torchrun has started the ranks again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _hits(spec: dict, brain: Separation) -> bool:
    """Return whether a fault is for this rank, attempt, epoch and step."""
    here = {
        "rank": distributed.rank(),
        "attempt": _attempt(),
        "epoch": brain.epoch,
        "step": brain.step,
    }
    return all(
        spec[name] == value for name, value in here.items() if name in spec
    ) and (brain.step >= spec.get("from_step", 0))


def _wrong(
    clock: Callable[[], float], rate: float, seconds: float
) -> Callable[[], float]:
    """Return a clock that runs at a rate from now on, and is seconds ahead."""
    now = clock()
    return lambda: now + seconds + rate * (clock() - now)


def _slow(spec: dict) -> None:
    """Make the first call in a stage last a minute; it may signal itself."""

    def wait() -> None:
        print(SLOW, flush=True)
        if "signal" in spec:
            os.kill(os.getpid(), spec["signal"])
        time.sleep(60)

    if spec["in"] == "levels":
        for module in (utterances, track_levels):
            module.measure_once = lambda *_: wait()  # type: ignore[attr-defined]
        return
    evaluate_batch = Separation.evaluate_batch

    def evaluate(self: Separation, batch: Batch, stage: Stage) -> torch.Tensor:
        if stage.name.lower() == spec["in"]:
            wait()
        return evaluate_batch(self, batch, stage)

    Separation.evaluate_batch = evaluate


def _no_device(spec: dict) -> None:
    """Let this rank find no device."""

    def refuse(name: str) -> None:
        raise HparamsError(f"--device={name}: no such device")

    distributed.check_device = refuse


def _full_disk(spec: dict) -> None:
    """Fill the disk when the first epoch is to be logged."""

    def refuse(self: RunLog, *_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.csv_path))

    RunLog.epoch = refuse


def _terminal(spec: dict) -> None:
    """Exchange streams for a pipe that nobody reads, or a full disk."""
    if spec["to"] == "broken pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(spec["to"], os.O_WRONLY)
    for descriptor in spec["streams"]:
        os.dup2(writer, descriptor)


#: What a job prints when it has come to an example that lasts a minute.
SLOW = "an example that lasts a minute"

AT_ONCE = {
    "slow": _slow,
    "no_device": _no_device,
    "full_disk": _full_disk,
    "terminal": _terminal,
}


def _exchange_manifest(split: str, path: str) -> None:
    """Give the recipe another manifest than the one that was prepared."""
    make_loaders = SpeechSeparation.make_loaders

    def make(self: SpeechSeparation, manifests: dict[str, str]) -> tuple:
        return make_loaders(self, manifests | {split: path})

    SpeechSeparation.make_loaders = make


def inject(specs: list[dict]) -> None:
    """Inject the faults into `fit_batch`, or into the whole process at once."""
    rank = os.environ.get("RANK", "0")
    in_step = [spec for spec in specs if spec["fault"] in IN_STEP]
    for spec in specs:
        if spec["fault"] == "file_size":  # a quota: writes beyond it fail
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (spec["bytes"],) * 2)
        elif spec["fault"] == "clock":
            for name in spec.get("names", ["time"]):
                clock = getattr(time, name)
                setattr(time, name, _wrong(clock, spec["rate"], spec["seconds"]))
        elif spec["fault"] in AT_ONCE and str(spec.get("rank", rank)) == rank:
            AT_ONCE[spec["fault"]](spec)
        elif spec["fault"] == "manifest":  # prepared by other hands
            _exchange_manifest(spec["split"], spec["path"])
    fit_batch = Separation.fit_batch

    def suffer(self: Separation, batch: Batch) -> torch.Tensor:
        with contextlib.ExitStack() as stack:
            for spec in in_step:
                if _hits(spec, self):
                    stack.enter_context(IN_STEP[spec["fault"]](self, batch))
            return fit_batch(self, batch)

    if in_step:
        Separation.fit_batch = suffer


def dump_epochs(folder: Path) -> None:
    """Write weights, optimizer, rate and counts of this rank after every epoch."""
    on_epoch_end = Separation.on_epoch_end

    def dump(self: Separation, epoch: int, metrics: dict[str, float]) -> None:
        stats = self.stats
        on_epoch_end(self, epoch, metrics)
        separator = distributed.unwrap(self.modules["separator"])
        held = {
            "weights": separator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer_steps": self.optimizer_step,
            "stats": vars(stats),
        }
        torch.save(held, folder / f"epoch{epoch}_rank{distributed.rank()}.pt")

    Separation.on_epoch_end = dump


def report_steps(path: str) -> None:
    """Append a line to a file after every step of rank 0."""
    fit_batch = Separation.fit_batch

    def report(self: Separation, batch: Batch) -> torch.Tensor:
        loss = fit_batch(self, batch)
        if distributed.rank() == 0:
            with open(path, "a") as file:
                file.write(f"{_attempt()}\n")
        return loss

    Separation.fit_batch = report


def disable_safeguard() -> None:
    """Apply the mutation; once in the bench's process and in each new interpreter."""
    if name := os.environ.get(MUTATION):
        mutations.apply(name)


def prepare_process() -> None:
    """Apply to this process what the environment asks for."""
    inject(json.loads(os.environ.get(FAULTS, "[]")))
    if DRAW not in os.environ:
        RunLog.curves = lambda self: None
        records.describe_environment = lambda repository: ""
    if path := os.environ.get(STEPS):
        report_steps(path)
    if folder := os.environ.get(DUMP):
        dump_epochs(Path(folder))


def warm_up() -> None:
    """Import now what each forked job would otherwise import late."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    torch.optim.Adam([parameter])  # torch._dynamo
    importlib.import_module("matplotlib.figure")


def run_train(arguments: list[str]) -> None:
    """Run train.py in this process as `python train.py ARGUMENTS` does."""
    prepare_process()
    sys.argv = [str(ROOT / "train.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    disable_safeguard()
    run_train(sys.argv[1:])
