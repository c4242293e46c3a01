"""Where the memory of training goes: the first steps, module by module.

`memory.csv` has a row for each module that holds something, in bytes:

    parameters, gradients, optimizer   of the module's own parameters, as measured
    saved       what its own operations keep for the backward, at the moment of the
                highest sum over all modules; a tensor that several modules keep counts
                once, for the first of them, and a view as all of the memory under it
    cuda_peak   the most that tensors held while its forward ran

Modules are those of the network; `(outside)` is what runs in none of them, as the loss.
`(sum)` adds the rows up: more than is ever needed at once, because gradients come as
saved tensors go. `(peak)` was really held: on CUDA by tensors in these steps, else by
the process, Python and torch included, since it began.

The table leaves out what lives within an operation, what a checkpointed block computes
again (`cuda_peak` has it), averaged weights, buffers of DistributedDataParallel, and
the workers that load data. With `--compile`, nothing is known by module.
"""

import contextlib
import functools
import resource
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from modules.monitor.curves import save_figure
from modules.runtime.tables import write_table

COLUMNS = ("module", "class", "parameters", "gradients", "optimizer", "saved")

STACKED = COLUMNS[2:]
OUTSIDE = "(outside)"
MAX_BARS = 30  # in the picture


class Saved:
    """A tensor kept for the backward; calls `release` when it is let go."""

    __slots__ = ("key", "release", "tensor")

    def __init__(self, tensor: Tensor, key: int, release: Callable) -> None:
        self.tensor, self.key, self.release = tensor, key, release

    def __del__(self) -> None:
        self.release(self.key)


class MemoryProfile:
    """A context of each step, which measures the first `steps` and then does nothing.

    `memory.csv` and `memory.png` are written to `folder` after each measured step; in
    the first one the optimizer has no state yet.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> profile = MemoryProfile(model, optimizer, getfixture("tmp_path"), steps=1)
    >>> with profile:
    ...     model(torch.zeros(2, 4)).sum().backward()
    ...     optimizer.step()
    >>> profile.saved["0"], profile.saved["1"]  # input of one, output of the other
    (32, 64)
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, folder: str | Path, steps: int = 3
    ) -> None:
        self.model, self.optimizer, self.folder = model, optimizer, Path(folder)
        self.steps_left = steps
        device = next(model.parameters()).device
        self.cuda = device if device.type == "cuda" else None
        # Bytes by name of a module: saved at the peak, saved now, CUDA's peak.
        self.saved: Counter[str] = Counter()
        self._now: Counter[str] = Counter()
        self.cuda_peaks: Counter[str] = Counter()
        self.gradients: dict[Tensor, int] = {}  # bytes by parameter
        # By address of the memory: how often it is kept, bytes, for which module.
        self._kept: dict[int, list] = {}
        self._running: list[str] = []
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> "MemoryProfile":
        """Watch a step, if one is still to be measured."""
        if not self.steps_left:
            return self
        self.permanent = {
            tensor.untyped_storage().data_ptr()
            for tensor in (*self.model.parameters(), *self.model.buffers())
        }
        if self.cuda is not None:
            torch.cuda.reset_peak_memory_stats(self.cuda)
        add = self._hooks.enter_context
        for name, module in self.model.named_modules():
            enter = functools.partial(self._enter, name)
            add(module.register_forward_pre_hook(enter))
            # Also when a checkpoint ends its recomputation early, by an exception.
            add(module.register_forward_hook(self._leave, always_call=True))
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                add(parameter.register_post_accumulate_grad_hook(self._gradient))
        add(torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack))
        return self

    def __exit__(self, *error: object) -> None:
        """Stop watching and write what is known, also of a step that failed."""
        if not self.steps_left:
            return
        self._hooks.close()
        self._running.clear()
        self._note_cuda_peak()
        self._note_peak()
        self.steps_left -= 1
        self.write()  # after each step: the next one may run out of memory

    def _pack(self, tensor: Tensor) -> Saved | Tensor:
        if tensor.layout != torch.strided:
            return tensor
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self.permanent or not key:
            return tensor
        module = self._running[-1] if self._running else OUTSIDE
        kept = self._kept.setdefault(key, [0, storage.nbytes(), module])
        kept[0] += 1
        if kept[0] == 1:
            self._now[module] += kept[1]
        return Saved(tensor, key, self._release)

    def _unpack(self, saved: Saved | Tensor) -> Tensor:
        return saved.tensor if isinstance(saved, Saved) else saved

    def _release(self, key: int) -> None:
        kept = self._kept[key]
        kept[0] -= 1
        if kept[0] == 0:
            self._note_peak()
            self._now[kept[2]] -= kept[1]
            del self._kept[key]

    def _note_peak(self) -> None:
        if self._now.total() > self.saved.total():
            self.saved = Counter(self._now)

    def _enter(self, name: str, module: nn.Module, inputs: object) -> None:
        self._note_cuda_peak()
        self._running.append(name)

    def _leave(self, module: nn.Module, inputs: object, output: object) -> None:
        self._note_cuda_peak()
        self._running.pop()

    def _gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.gradients[parameter] = parameter.grad.nbytes

    def _note_cuda_peak(self) -> None:
        """Give the peak since the last note to all modules that were running."""
        if self.cuda is None:
            return
        peak = torch.cuda.max_memory_allocated(self.cuda)
        for name in ("(peak)", *self._running):
            self.cuda_peaks[name] = max(self.cuda_peaks[name], peak)
        torch.cuda.reset_peak_memory_stats(self.cuda)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each module that holds something, in the network's order."""
        rows: list[dict[str, Any]] = []
        seen: set[Tensor] = set()
        for name, module in self.model.named_modules():
            parameters = [p for p in module.parameters(recurse=False) if p not in seen]
            seen.update(parameters)
            states = [self.optimizer.state.get(p, {}).values() for p in parameters]
            row = {
                "module": name or "(network)",
                "class": type(module).__name__,
                "parameters": sum(map(_bytes, parameters)),
                "gradients": sum(self.gradients.get(p, 0) for p in parameters),
                "optimizer": sum(_bytes(v) for state in states for v in state),
                "saved": self.saved[name],
                "cuda_peak": self.cuda_peaks.get(name, ""),
            }
            if any(row[column] for column in STACKED):
                rows.append(row)
        outside = dict.fromkeys(STACKED, 0) | {"saved": self.saved[OUTSIDE]}
        return [*rows, {"module": OUTSIDE, **outside}]

    def write(self) -> None:
        """Write `memory.csv` and `memory.png`."""
        rows = self.rows()
        total = {name: sum(row[name] for row in rows) for name in STACKED}
        table = [*rows, {"module": "(sum)", **total}]
        table = [row | {"total": sum(row[name] for name in STACKED)} for row in table]
        peak = self.cuda_peaks["(peak)"] if self.cuda else resident_peak()
        holder = str(self.cuda or "process")
        table.append({"module": "(peak)", "class": holder, "total": peak})
        header = (*COLUMNS, "total", "cuda_peak")
        cells = [[row.get(name, "") for name in header] for row in table]
        write_table(self.folder / "memory.csv", header, cells)
        where = f"on {self.cuda}" if self.cuda else "of the process"
        title = f"sum {sum(total.values()) / 1e6:.0f} MB, peak {where} {peak / 1e6:.0f}"
        draw(rows, f"{title} MB", self.folder / "memory.png")


def draw(rows: list[dict], title: str, path: Path) -> Path:
    """Draw stacked bars, of groups of modules if there are more than `MAX_BARS`."""
    from matplotlib.figure import Figure  # slow to import, and only needed here

    names = [row["module"].split(".") for row in rows]
    for depth in range(max(map(len, names)), 0, -1):
        bars: dict[str, Counter[str]] = {}
        for row, parts in zip(rows, names, strict=True):
            bar = bars.setdefault(".".join(parts[:depth]), Counter())
            bar.update({name: row[name] for name in STACKED})
        if len(bars) <= MAX_BARS:
            break
    # In the network's order; the largest ones, if even the groups are too many.
    largest = sorted(bars, key=lambda name: -bars[name].total())[:MAX_BARS]
    shown = [name for name in bars if name in largest][::-1]
    figure = Figure(figsize=(9, 1.5 + 0.28 * len(shown)), layout="constrained")
    axis = figure.subplots()
    left = [0.0] * len(shown)
    for column in STACKED:
        widths = [bars[name][column] / 1e6 for name in shown]
        axis.barh(shown, widths, left=left, label=column)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.set(xlabel="MB", title=title)
    axis.legend(fontsize="small")
    axis.grid(axis="x", alpha=0.3)
    return save_figure(figure, path)


def resident_peak() -> int:
    """Return the peak resident memory of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _bytes(value: object) -> int:
    return value.nbytes if isinstance(value, Tensor) else 0
