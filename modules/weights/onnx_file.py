"""A network as an ONNX file: any length of audio, checked against torch.

The graph is the whole network, spectra included (ONNX has a DFT). It takes `mixture`,
[1, T] or for music [1, C, T] in float32, and gives `estimates`, [1, S, T] or
[1, S, C, T].
"""

import json
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modules.runtime.errors import ExportError
from modules.runtime.files import write_whole

ONNX_FILE = "model.onnx"
PACKAGES = "onnx, onnxscript and onnxruntime"

SECONDS = (1.07, 2.3, 0.31)  # lengths that are compared; the first one is traced

TOLERANCE = 1e-4  # of the largest sample; rounding is below 1e-5


class Check(NamedTuple):
    """How a file compares with torch on noise.

    `difference` is the largest one, as a share of the largest sample; `seconds` are the
    medians of torch's time and onnxruntime's for `audio_seconds`.
    """

    difference: float
    seconds: tuple[float, float]
    audio_seconds: float

    def __str__(self) -> str:
        torch_s, onnx_s = self.seconds
        return (
            f"differs from torch by {self.difference:.1e} of the peak; "
            f"{self.audio_seconds:.1f} s of audio take {onnx_s:.3f} s, in torch "
            f"{torch_s:.3f} s ({onnx_s / torch_s:.2f})"
        )


def write_onnx(path: Path, model: nn.Module, metadata: Mapping[str, Any]) -> Check:
    """Write a network in evaluation mode, and compare the file with it.

    Raise an `ExportError`, and leave no file, if packages are missing, an operation has
    no form in ONNX or fixes the length, or the file computes something else.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # what torch writes ONNX with
    except ImportError as error:
        raise ExportError(
            f"--onnx needs {PACKAGES}: pip install onnx onnxscript onnxruntime "
            f"({error})"
        ) from error
    rate, channels = metadata["sample_rate"], getattr(model, "audio_channels", None)
    if channels is None and hasattr(model, "segment"):
        channels = 2
    generator = torch.Generator().manual_seed(0)

    def noise(seconds: float) -> Tensor:
        shape = (1, round(seconds * rate)) if channels is None else (1, channels, -1)
        samples = round(seconds * rate) * (channels or 1)
        return torch.randn(samples, generator=generator).mul(0.1).reshape(shape)

    what = f"--onnx: {type(model).__name__}"
    own = float(getattr(model, "segment", 1.0))  # a network of music has a length
    lengths = [share * own for share in SECONDS]
    mixture = noise(lengths[0])
    try:
        with torch.no_grad():
            program: Any = torch.onnx.export(
                model,
                (mixture,),
                input_names=["mixture"],
                output_names=["estimates"],
                dynamic_shapes=({mixture.dim() - 1: torch.export.Dim.DYNAMIC},),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # dozens of kinds, of torch, onnxscript and sympy
        raise ExportError(f"{what}: {_reason(error)}") from error
    _average_axis_by_axis(program.model.graph)
    program.model.metadata_props.update(
        {name: json.dumps(value) for name, value in metadata.items()}
    )
    with write_whole(path) as partial:
        program.save(partial)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(partial, options)

        def run(mixture: Tensor) -> Tensor:
            found = session.run(None, {"mixture": mixture.numpy()})
            return torch.from_numpy(found[0])

        worst = 0.0
        for seconds in lengths:
            mixture = noise(seconds)
            difference = _difference(model, run, mixture)
            if not difference <= TOLERANCE:
                raise ExportError(
                    f"{what}: at {mixture.shape[-1]} samples "
                    f"the file differs from torch by {difference:.1e} of the peak; an "
                    "operation depends on the length in a way that ONNX does not keep"
                )
            worst = max(worst, difference)
        return Check(worst, _times(model, run, noise(lengths[0])), lengths[0])


def _average_axis_by_axis(graph: Any) -> None:
    """Make a mean over several axes one mean after the other.

    onnxruntime adds all values in one float32: over the millions of a norm over whole
    recordings that costs three digits.
    """
    import onnx_ir

    for node in list(graph):
        axes = node.inputs[1].const_value if len(node.inputs) == 2 else None
        keeps = node.attributes.get("keepdims")
        if node.op_type != "ReduceMean" or axes is None or (keeps and not keeps.value):
            continue
        value, first, *others = node.inputs[0], *axes.numpy().tolist()
        for axis in (first, *others):
            name = f"{node.name}_axis_{axis}"
            constant = onnx_ir.val(name, const_value=onnx_ir.tensor([axis], name=name))
            graph.register_initializer(constant)
            step = onnx_ir.node("ReduceMean", [value, constant], {"keepdims": 1})
            graph.insert_before(node, step)
            value = step.outputs[0]
        node.outputs[0].replace_all_uses_with(value)
        graph.remove(node)


@torch.no_grad()
def _difference(
    model: nn.Module, run: Callable[[Tensor], Tensor], mixture: Tensor
) -> float:
    expected = model(mixture)
    try:
        found = run(mixture)
    except Exception as error:  # onnxruntime's own, without a common base
        lines = str(error).splitlines()
        raise ExportError(
            f"--onnx: {type(model).__name__}: onnxruntime refuses "
            f"{mixture.shape[-1]} samples: {lines[0][:300]}"
        ) from error
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def _times(
    model: nn.Module, run: Callable[[Tensor], Tensor], mixture: Tensor, times: int = 3
) -> tuple[float, float]:
    """Return the medians of torch's time and the file's, run in turn."""

    def seconds(call: Callable[[Tensor], Tensor]) -> float:
        begin = time.perf_counter()
        call(mixture)
        return time.perf_counter() - begin

    pairs = [(seconds(model), seconds(run)) for _ in range(times)]
    torch_s, onnx_s = map(statistics.median, zip(*pairs, strict=True))
    return torch_s, onnx_s


def _reason(error: BaseException) -> str:
    """Return the operation that is in the way, or the innermost error's first line."""
    text, inner = "", error
    while True:
        text += f"{inner}\n"
        if (cause := inner.__cause__ or inner.__context__) is None:
            break
        inner = cause
    missing = re.search(r"No ONNX function found for .*?op='([\w.]+)'", text)
    if missing:
        return f"the operation {missing[1]} has no form in ONNX"
    lines = [line.strip(" -") for line in str(inner).splitlines() if line.strip()]
    return "cannot be exported: " + " ".join(lines)[:300]
