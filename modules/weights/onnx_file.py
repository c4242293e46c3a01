"""A network as an ONNX file: any length of audio, checked against torch.

The graph is the whole network, spectra included (ONNX has a DFT). It takes `mixture`,
[1, T] or for music [1, C, T] in float32, and gives `estimates`, [1, S, T] or
[1, S, C, T].
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modules.runtime.errors import ExportError
from modules.runtime.files import write_whole

ONNX_FILE = "model.onnx"

SECONDS = (1.07, 1.6, 0.31)  # lengths that are compared; the first one is traced

TOLERANCE = 1e-3  # of the largest sample; rounding grows with length, to about 1e-4


def write_onnx(path: Path, model: nn.Module, metadata: Mapping[str, Any]) -> float:
    """Write a network in evaluation mode; return how far it is from torch's.

    That is the largest difference as a share of the largest sample. An `ExportError`,
    which leaves no file, says which packages are missing, which operation has no form
    in ONNX or fixes the length, or that the file computes something else.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # what torch writes ONNX with
    except ImportError as error:
        raise ExportError(
            f"--onnx: {error}; pip install onnx onnxscript onnxruntime"
        ) from error
    what = f"--onnx: {type(model).__name__}"
    # A network of music has a length of its own, and channels.
    own = float(getattr(model, "segment", 1.0)) * metadata["sample_rate"]
    shape = [getattr(model, "audio_channels", 2)] if hasattr(model, "segment") else []
    generator = torch.Generator().manual_seed(0)
    mixtures = [
        0.1 * torch.randn(1, *shape, round(seconds * own), generator=generator)
        for seconds in SECONDS
    ]
    try:
        with torch.no_grad():
            program: Any = torch.onnx.export(
                model,
                (mixtures[0],),
                input_names=["mixture"],
                output_names=["estimates"],
                dynamic_shapes=({mixtures[0].dim() - 1: torch.export.Dim.DYNAMIC},),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # dozens of kinds, of torch, onnxscript and sympy
        raise ExportError(f"{what}: {_reason(error)}") from error
    _average_axis_by_axis(program.model.graph)
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    program.model.metadata_props.update(texts)
    with write_whole(path) as partial:
        program.save(partial)
        differences = [0.0]
        for mixture in mixtures:
            at = f"{what}: at {mixture.shape[-1]} samples"
            try:
                session = onnxruntime.InferenceSession(partial)
                found = session.run(None, {"mixture": mixture.numpy()})[0]
            except Exception as error:  # onnxruntime's own, without a common base
                reason = str(error).splitlines()[0][:300]
                raise ExportError(f"{at} onnxruntime refuses: {reason}") from error
            differences.append(_difference(model, mixture, torch.from_numpy(found)))
            if not differences[-1] <= TOLERANCE:
                raise ExportError(
                    f"{at} the file differs from torch by {differences[-1]:.1e} of the "
                    "peak; an operation depends on the length in a way that ONNX does "
                    "not keep"
                )
        return max(differences)


def _average_axis_by_axis(graph: Any) -> None:
    """Make a mean over several axes one mean after the other.

    onnxruntime adds all values in one float32: over the millions of a norm over whole
    recordings that costs up to two digits.
    """
    import onnx_ir

    for node in list(graph):
        given = node.inputs
        axes = given[1].const_value if len(given) == 2 else None
        keeps = node.attributes.get("keepdims")
        if node.op_type != "ReduceMean" or axes is None or (keeps and not keeps.value):
            continue
        value: Any = given[0]
        for axis in axes.numpy().tolist():
            name = f"{node.name}_axis_{axis}"
            constant = onnx_ir.val(name, const_value=onnx_ir.tensor([axis], name=name))
            graph.register_initializer(constant)
            step = onnx_ir.node("ReduceMean", [value, constant], {"keepdims": 1})
            graph.insert_before(node, step)
            value = step.outputs[0]
        node.outputs[0].replace_all_uses_with(value)
        graph.remove(node, safe=True)
        if not (unused := given[1]).uses():
            graph.initializers.pop(unused.name, None)


@torch.no_grad()
def _difference(model: nn.Module, mixture: Tensor, found: Tensor) -> float:
    expected = model(mixture)
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max())


def _reason(error: BaseException) -> str:
    """Return the operation that is in the way, or the innermost error."""
    text, inner = str(error), error
    while (cause := inner.__cause__ or inner.__context__) is not None:
        inner, text = cause, f"{text}\n{cause}"
    if missing := re.search(r"No ONNX function found for .*?op='([\w.]+)'", text):
        return f"the operation {missing[1]} has no form in ONNX"
    lines = [line.strip(" -") for line in str(inner).splitlines() if line.strip()]
    return "cannot be exported: " + " ".join(lines)[:300]
