"""Compare our models with the public reference code: time and peak memory.

    python -m benchmarks.models                       # all models, published size
    python -m benchmarks.models --models mossformer2 --layers 4 --repeats 2
    python -m benchmarks.models --out benchmarks/models.md

Every figure is one fresh process: it builds the model, runs one untimed step and then
times ``--steps`` more (an inference, or a forward and backward pass without an
optimiser), keeping the best. Peak memory is the process's own, so it is free of what
another variant left behind. Reference and ours take turns (A-B-A-B), so that a change
in the machine's load meets both. Ratios are ours over the reference's best time.

Before that, ours loads the reference's weights, strictly, and must give its output.

The reference of SepFormer is SpeechBrain's own ``lobes.models.dual_path``; that of
MossFormer2 is the code inside PyPI ``clearvoice``, a development dependency only:

    pip install --no-deps clearvoice==0.1.2 einops rotary-embedding-torch==0.8.3

and that of HTDemucs is PyPI ``demucs``:

    pip install --no-deps demucs==4.1.0 einops tqdm

(or the same with ``--target FOLDER`` and ``--reference FOLDER`` here). The reference
always runs in float32 without checkpointing, as it is published. HTDemucs is timed
where it is used: inference is that of a 30 s song in overlapping segments, and train
steps are those of 4 s and of the published 7.8 s.
"""

import argparse
import importlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
import types
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

# samples of a mixture: for inference, and for train steps
SAMPLES = {
    "mossformer2": ([4 * 8000], [4 * 8000]),
    "sepformer": ([4 * 8000], [4 * 8000]),
    "htdemucs": ([30 * 44100], [4 * 44100, 343980]),
}
STEREO = {"htdemucs"}
SOURCES = ["drums", "bass", "other", "vocals"]
INSTALL_DEMUCS = "pip install --no-deps demucs==4.1.0 einops tqdm"
INSTALL = "pip install --no-deps clearvoice==0.1.2 einops rotary-embedding-torch==0.8.3"
# name in the table, arguments of the process
VARIANTS = {
    "inference fp32": {"train": False, "precision": "fp32", "checkpointing": False},
    "inference bf16": {"train": False, "precision": "bf16", "checkpointing": False},
    "train fp32": {"train": True, "precision": "fp32", "checkpointing": False},
    "train fp32, checkpointing": {
        "train": True,
        "precision": "fp32",
        "checkpointing": True,
    },
    "train bf16": {"train": True, "precision": "bf16", "checkpointing": False},
    "train bf16, checkpointing": {
        "train": True,
        "precision": "bf16",
        "checkpointing": True,
    },
}
# HTDemucs without dropout of the attention weights, which the reference always has
LEAN = {"precision": "fp32", "checkpointing": False, "attention_dropout": False}
VARIANTS_OF = {
    "mossformer2": VARIANTS,
    "sepformer": VARIANTS,
    "htdemucs": {
        **VARIANTS,
        "train fp32, no attention dropout": {"train": True, **LEAN},
        "train bf16, no attention dropout, checkpointing": {
            **{"train": True, **LEAN},
            "precision": "bf16",
            "checkpointing": True,
        },
    },
}


# ---------------------------------------------------------------- the models


def reference_mossformer2(layers: int | None) -> nn.Module:
    """Build ClearVoice's network, importing only the files that hold it."""
    module_name = "clearvoice.models.mossformer2_ss.mossformer2"
    if module_name in sys.modules:
        return sys.modules[module_name].MossFormer(num_blocks=layers or 24)
    spec = importlib.util.find_spec("clearvoice")
    if spec is None or not importlib.util.find_spec("rotary_embedding_torch"):
        raise SystemExit(f"benchmark: the MossFormer2 reference is missing: {INSTALL}")
    # The packages' own __init__ files pull in every other model and its dependencies.
    for name in ("clearvoice", "clearvoice.models"):
        package = types.ModuleType(name)
        folders = [Path(path) for path in spec.submodule_search_locations]
        package.__path__ = [str(f.joinpath(*name.split(".")[1:])) for f in folders]
        sys.modules[name] = package
    # Imported by the reference for a printed summary, never called here.
    sys.modules.setdefault("torchinfo", types.ModuleType("torchinfo")).summary = None
    return importlib.import_module(module_name).MossFormer(num_blocks=layers or 24)


def our_mossformer2(layers: int | None, checkpointing: bool) -> nn.Module:
    """Build ours, as published."""
    from modules.models.mossformer2 import MossFormer2

    return MossFormer2(layers=layers or 24, activation_checkpointing=checkpointing)


class ReferenceSepFormer(nn.Module):
    """Build SpeechBrain's SepFormer as its recipe does."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        from speechbrain.lobes.models import dual_path as sb

        def block() -> nn.Module:
            return sb.SBTransformerBlock(
                num_layers=layers,
                d_model=256,
                nhead=8,
                d_ffn=1024,
                dropout=0.0,
                use_positional_encoding=True,
                norm_before=True,
            )

        self.encoder = sb.Encoder(kernel_size=16, out_channels=256)
        self.masknet = sb.Dual_Path_Model(
            num_spks=2,
            in_channels=256,
            out_channels=256,
            num_layers=2,
            K=250,
            intra_model=block(),
            inter_model=block(),
            norm="ln",
            linear_layer_after_inter_intra=False,
            skip_around_intra=True,
        )
        self.decoder = sb.Decoder(256, 1, kernel_size=16, stride=8, bias=False)

    def forward(self, mixture_BT: Tensor) -> list[Tensor]:
        """Return one waveform for each source."""
        features = self.encoder(mixture_BT)
        masks = self.masknet(features)
        waves = [self.decoder(features * mask) for mask in masks]
        missing = mixture_BT.shape[-1] - waves[0].shape[-1]
        return [nn.functional.pad(wave, (0, missing)) for wave in waves]


def our_sepformer(layers: int | None, checkpointing: bool) -> nn.Module:
    """Build ours, as published."""
    from modules.models.sepformer import SepFormer

    depth = {"intra_layers": layers, "inter_layers": layers} if layers else {}
    return SepFormer(activation_checkpointing=checkpointing, **depth)


def demucs_module(name: str) -> types.ModuleType:
    """Import a file of PyPI demucs."""
    if not all(importlib.util.find_spec(n) for n in ("demucs", "einops", "tqdm")):
        raise SystemExit(f"benchmark: the reference is missing: {INSTALL_DEMUCS}")
    # Imported for the resampling of demucs' older models, never called here.
    sys.modules.setdefault("julius", types.ModuleType("julius"))
    return importlib.import_module(f"demucs.{name}")


def htdemucs_segment(samples: int) -> Fraction:
    """Return the published segment, or the mixture where it is shorter."""
    return min(Fraction(39, 5), Fraction(samples, 44100))


def reference_htdemucs(layers: int | None, samples: int) -> nn.Module:
    """Build demucs' network with the arguments of the published model."""
    return demucs_module("htdemucs").HTDemucs(
        SOURCES,
        segment=htdemucs_segment(samples),
        dconv_mode=3,
        bottom_channels=512,
        t_layers=layers or 5,
        t_dropout=0.02,
    )


def our_htdemucs(
    layers: int | None, samples: int, checkpointing: bool, attention_dropout: bool
) -> nn.Module:
    """Build ours, as published."""
    from modules.models.htdemucs import HTDemucs

    return HTDemucs(
        SOURCES,
        htdemucs_segment(samples),
        t_layers=layers or 5,
        attention_dropout=attention_dropout,
        activation_checkpointing=checkpointing,
    )


def build_reference(job: dict) -> nn.Module:
    """Build the reference of a job."""
    if job["model"] == "htdemucs":
        return reference_htdemucs(job["layers"], job["samples"])
    if job["model"] == "mossformer2":
        return reference_mossformer2(job["layers"])
    return ReferenceSepFormer(job["layers"] or 8)


def build_ours(job: dict) -> nn.Module:
    """Build our model of a job."""
    checkpointing = job.get("checkpointing", False)
    if job["model"] == "htdemucs":
        dropout = job.get("attention_dropout", True)
        return our_htdemucs(job["layers"], job["samples"], checkpointing, dropout)
    build = our_mossformer2 if job["model"] == "mossformer2" else our_sepformer
    return build(job["layers"], checkpointing)


def forward(model: nn.Module, mixture_BT: Tensor) -> Tensor:
    """Return ``estimate_BST`` from either side (the references give a list)."""
    estimate = model(mixture_BT)
    if isinstance(estimate, Tensor):
        return estimate
    return torch.stack([wave.reshape(mixture_BT.shape) for wave in estimate], dim=1)


def infer(job: dict, model: nn.Module, mixture_BT: Tensor) -> Tensor:
    """Separate as the model is used: music in overlapping segments."""
    if job["model"] != "htdemucs":
        return forward(model, mixture_BT)
    if job["side"] == "reference":
        apply_model = demucs_module("apply").apply_model
    else:
        from modules.inference.songs import apply_model
    return apply_model(model, mixture_BT, shifts=0)


def make_mixture(job: dict) -> Tensor:
    """Return noise [1, T], or [1, 2, T] for music."""
    shape = (1, 2) if job["model"] in STEREO else (1,)
    return 0.1 * torch.randn(*shape, job["samples"])


# ---------------------------------------------------------------- one process


def measure(job: dict) -> dict[str, float]:
    """Time one variant in this process and return seconds and megabytes."""
    torch.manual_seed(0)
    build = build_reference if job["side"] == "reference" else build_ours
    model = build(job).train(job["train"])
    mixture_BT = make_mixture(job)
    seconds = []
    for _ in range(1 + job["steps"]):
        start = time.perf_counter()
        run_step(job, model, mixture_BT)
        seconds.append(time.perf_counter() - start)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": min(seconds[1:]), "peak_mb": peak_mb}


def run_step(job: dict, model: nn.Module, mixture_BT: Tensor) -> None:
    """Run one inference, or one forward and backward pass."""
    train, half = job["train"], job["precision"] == "bf16"
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=half)
    with autocast, torch.set_grad_enabled(train):
        if not train:
            infer(job, model, mixture_BT)
            return
        estimate_BST = forward(model, mixture_BT)
    model.zero_grad()
    estimate_BST.float().abs().mean().backward()


def compare(job: dict) -> dict[str, float]:
    """Load the reference's weights into ours and return the difference of outputs."""
    torch.manual_seed(0)
    reference, ours = build_reference(job).eval(), build_ours(job).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    mixture_BT = make_mixture(job)
    with torch.no_grad():
        truth, estimate = forward(reference, mixture_BT), forward(ours, mixture_BT)
        with torch.autocast("cpu", torch.bfloat16):
            half = forward(ours, mixture_BT)
    error = half.float() - truth
    return {
        "max_difference": (estimate - truth).abs().max().item(),
        "peak": truth.abs().max().item(),
        "bf16_snr_db": (
            10 * torch.log10(truth.square().sum() / error.square().sum())
        ).item(),
    }


def in_fresh_process(job: dict, reference: str | None) -> dict[str, float]:
    """Run `measure` or `compare` in a process of its own."""
    environment = dict(os.environ)
    if reference:
        paths = [environment.get("PYTHONPATH"), reference]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, "-m", "benchmarks.models", "--job", json.dumps(job)]
    done = subprocess.run(
        command,
        env=environment,
        cwd=Path(__file__).resolve().parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"benchmark: exit code {done.returncode} of {job}")
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------- the table


def benchmark(model: str, arguments: argparse.Namespace) -> list[str]:
    """Measure one model and return its lines of markdown."""
    base = {"model": model, "layers": arguments.layers, "steps": arguments.steps}
    lengths = SAMPLES[model]
    if arguments.samples:
        lengths = ([arguments.samples], [arguments.samples])

    def run(**options: object) -> dict[str, float]:
        result = in_fresh_process({**base, **options}, arguments.reference)
        print(options, {k: round(v, 3) for k, v in result.items()}, file=sys.stderr)
        return result

    same = run(side="both", samples=lengths[True][0])
    if same["max_difference"] > 1e-5 * same["peak"]:
        raise SystemExit(
            f"benchmark: {model} differs from its reference by "
            f"{same['max_difference']:.1e} (peak {same['peak']:.1e})"
        )
    variants = VARIANTS_OF[model]
    # name in the table, arguments of the process of ours
    rows = {}
    for name in arguments.variants or variants:
        if name in variants:
            train = variants[name]["train"]
            for samples in lengths[train]:
                tail = f", {samples} samples" if len(lengths[train]) > 1 else ""
                rows[name + tail] = {"samples": samples, **variants[name]}
    results: dict[str, list[dict[str, float]]] = {}
    for _ in range(arguments.repeats):
        for name, ours in sorted(rows.items(), key=lambda row: row[1]["train"]):
            # The reference runs before every variant, not once for all.
            plain = {"train": ours["train"], "samples": ours["samples"]}
            plain |= {"precision": "fp32", "checkpointing": False}
            for key, side, options in (
                (reference_of(ours), "reference", plain),
                (name, "ours", ours),
            ):
                results.setdefault(key, []).append(run(side=side, **options))
    layers = f", {arguments.layers} layers" if arguments.layers else ""
    inference, *_ = lengths[False]
    size = f"{inference} samples" + (" (inference)" if len(lengths[True]) > 1 else "")
    lines = [
        f"### {model}{layers}, {size}, batch 1, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}",
        "",
        f"Same weights: largest difference {same['max_difference']:.1e} at an output "
        f"peak of {same['peak']:.1e}; bf16 against fp32 {same['bf16_snr_db']:.1f} dB.",
        "",
        "| variant | reference s | ours s | time ratio | reference MB | ours MB "
        "| memory ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, variant in rows.items():
        reference = smallest(results[reference_of(variant)])
        ours = smallest(results[name])
        lines.append(
            f"| {name} | {reference['seconds']:.2f} | {ours['seconds']:.2f} "
            f"| {ours['seconds'] / reference['seconds']:.2f} "
            f"| {reference['peak_mb']:.0f} | {ours['peak_mb']:.0f} "
            f"| {ours['peak_mb'] / reference['peak_mb']:.2f} |"
        )
    return [*lines, ""]


def reference_of(variant: dict) -> str:
    """Return the name of the reference's results that a variant is compared with."""
    return f"reference, train {variant['train']}, {variant['samples']}"


def smallest(results: list[dict[str, float]]) -> dict[str, float]:
    """Return the least time and the least peak memory of repeated runs."""
    return {key: min(r[key] for r in results) for key in ("seconds", "peak_mb")}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=sorted(SAMPLES), default=sorted(SAMPLES))
    known = list(VARIANTS_OF["htdemucs"])
    add("--variants", nargs="+", choices=known, help="default: all of the model")
    add("--layers", type=int, help="fewer layers (default: the published number)")
    add("--repeats", type=int, default=2, help="turns of reference and ours")
    add("--steps", type=int, default=2, help="timed steps of a process")
    add("--samples", type=int, help="length of the mixture (default: the model's)")
    add("--reference", help="folder that holds the reference (pip's --target)")
    add("--out", type=Path, help="also write the tables to this file")
    add("--job", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Print a table for each model."""
    arguments = parse(argv)
    if arguments.job:
        work = compare if arguments.job["side"] == "both" else measure
        print(json.dumps(work(arguments.job)))
        return
    lines: list[str] = []
    for model in arguments.models:
        lines += benchmark(model, arguments)
    text = "\n".join(lines)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
