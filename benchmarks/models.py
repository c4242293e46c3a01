"""Compare our models with the public reference code: time and peak memory.

    python -m benchmarks.models --reference FOLDER...     # all models, in half an hour
    python -m benchmarks.models --models mossformer2 --layers 24 --budget 60
    python -m benchmarks.models --out benchmarks/models.md

Every figure is one fresh process: it builds the model, runs one untimed step and then
times ``--steps`` more (an inference, or a forward and backward pass without an
optimiser), keeping the best. "step MB" is the peak of its memory over what it held
before the first step: what activations and gradients take, without libraries and
weights. All rows of a kind take turns (`benchmarks.pairs`), and ratios are to the first
row: the reference, always in float32 without checkpointing, as it is published.

Before that, ours loads the reference's weights, strictly, and must give its output.
TF-Locoformer and SepReformer have no reference that can be installed: there our fp32 is
the first row.

``--budget`` bounds the minutes of the whole table: every model and kind gets an equal
share of what is left, has one turn, and further ones as long as they fit. RoFormers
and TF-Locoformer have fewer of their equal layers, which the title says: the ratios are
those of a layer. Give ``--layers`` for others (of SCNet: pairs of layers; of
SepReformer: stages).

The reference of SepFormer is SpeechBrain's own ``lobes.models.dual_path``. The others
are development dependencies only; install them with ``--target FOLDER`` and give
``--reference FOLDER`` here:

    pip install --no-deps clearvoice==0.1.2 einops rotary-embedding-torch==0.8.3
    pip install --no-deps demucs==4.1.0 einops tqdm
    pip install --no-deps msst==0.1.0 bs-roformer==0.3.10 einops beartype \
        rotary-embedding-torch

HTDemucs is timed where it is used: inference is that of a song in overlapping segments.
"""

import argparse
import importlib
import importlib.util
import json
import os
import resource
import sys
import time
import types
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.pairs import CPU, WALL, Figures, call, header, report, rows, take_turns
from modules.models.htdemucs import HTDemucs
from modules.models.mossformer2 import MossFormer2
from modules.models.roformer import BSRoFormer, MelRoFormer
from modules.models.scnet import SCNet
from modules.models.sepformer import SepFormer
from modules.models.sepreformer import SepReformer
from modules.models.tf_locoformer import TFLocoformer

SOURCES = ["drums", "bass", "other", "vocals"]
STEP = "step MB"
#: How to install a reference, and the packages that it needs.
INSTALL = {
    "clearvoice": "clearvoice==0.1.2 einops rotary-embedding-torch==0.8.3",
    "demucs": "demucs==4.1.0 einops tqdm",
    "msst": "msst==0.1.0 einops beartype rotary-embedding-torch",
    "bs_roformer": "bs-roformer==0.3.10 einops beartype rotary-embedding-torch",
}
# name in the table, arguments of the process
INFERENCE: dict[str, dict] = {"fp32": {}, "bf16": {"precision": "bf16"}}
TRAIN = INFERENCE | {
    "fp32, checkpointing": {"checkpointing": True},
    "bf16, checkpointing": {"precision": "bf16", "checkpointing": True},
}
# HTDemucs without dropout of the attention weights, which the reference always has
LEAN = {
    f"{name}, no attention dropout": TRAIN[name] | {"attention_dropout": False}
    for name in ("fp32", "bf16, checkpointing")
}


class Model(NamedTuple):
    """One network: what is measured of it, and how both sides are built from a job."""

    samples: tuple[int, int]  # for inference, and for train steps
    layers: tuple[int, int]  # measured, published
    ours: Callable[[dict], nn.Module]
    reference: Callable[[dict], nn.Module] | None
    stereo: bool = False


# ---------------------------------------------------------------- the models


def reference_module(name: str) -> types.ModuleType:
    """Import a file of a reference without the __init__ files of its packages.

    These pull in every other model and its dependencies.
    """
    if name in sys.modules:
        return sys.modules[name]
    first, *_ = parents = name.split(".")[:-1]
    spec = importlib.util.find_spec(first)
    needed = [word.split("==")[0].replace("-", "_") for word in INSTALL[first].split()]
    if spec is None or not all(map(importlib.util.find_spec, needed[1:])):
        sys.exit(f"benchmark: missing: pip install --no-deps {INSTALL[first]}")
    for depth in range(len(parents)):
        package = types.ModuleType(".".join(parents[: depth + 1]))
        folders = [Path(path) for path in spec.submodule_search_locations]
        package.__path__ = [str(f.joinpath(*parents[1 : depth + 1])) for f in folders]
        package.__spec__ = spec  # for `find_spec`, the next time
        sys.modules.setdefault(package.__name__, package)
    # Imported for a printed summary, for resampling and for the bands of a mel scale.
    for other in ("torchinfo", "julius", "librosa"):
        sys.modules.setdefault(other, types.ModuleType(other))
    sys.modules["torchinfo"].summary = None
    sys.modules["librosa"].filters = types.SimpleNamespace(mel=mel_filters)
    return importlib.import_module(name)


def mel_filters(sr: int, n_fft: int, n_mels: int) -> Any:
    """Return what ``librosa.filters.mel`` returns."""
    from torchaudio.functional import melscale_fbanks

    scale = {"norm": "slaney", "mel_scale": "slaney"}
    with torch.device("cpu"):
        filters = melscale_fbanks(n_fft // 2 + 1, 0.0, sr / 2, n_mels, sr, **scale)
    return filters.T.numpy()


def reference_mossformer2(job: dict) -> nn.Module:
    """Build ClearVoice's network."""
    module = reference_module("clearvoice.models.mossformer2_ss.mossformer2")
    return module.MossFormer(num_blocks=job["layers"])


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


def reference_htdemucs(layers: int, samples: int) -> nn.Module:
    """Build demucs' network with the arguments of the published model."""
    return reference_module("demucs.htdemucs").HTDemucs(
        SOURCES,
        segment=htdemucs_segment(samples),
        dconv_mode=3,
        bottom_channels=512,
        t_layers=layers,
        t_dropout=0.02,
    )


def htdemucs_segment(samples: int) -> Fraction:
    """Return the published segment, or the mixture where it is shorter."""
    return min(Fraction(39, 5), Fraction(samples, 44100))


def our_htdemucs(job: dict) -> nn.Module:
    """Build ours, as published."""
    return HTDemucs(
        SOURCES,
        htdemucs_segment(job["samples"]),
        t_layers=job["layers"],
        attention_dropout=job.get("attention_dropout", True),
        activation_checkpointing=job.get("checkpointing", False),
    )


def ours(kind: Any, *names: str, **arguments: Any) -> Callable[[dict], nn.Module]:
    """Return what builds a network of ours, `names` being those of its depth."""

    def build(job: dict) -> nn.Module:
        depth = dict.fromkeys(names, job["layers"])
        redo = job.get("checkpointing", False)
        return kind(**depth, **arguments, activation_checkpointing=redo)

    return build


def music(
    kind: Any, place: str, name: str, config: dict, depth: str, **unknown: Any
) -> tuple[Callable[[dict], nn.Module], Callable[[dict], nn.Module]]:
    """Return what builds ours and the reference from the reference's keys.

    `unknown` are keys that this reference does not have yet.
    """

    def given(job: dict) -> dict:
        found = {**config, depth: job["layers"] * (2 if kind is SCNet else 1)}
        # On a GPU the references' flash kernel has no float32.
        slow = {"flash_attn": False} if job.get("plain_attention") else {}
        return found | slow if "flash_attn" in config else found

    def build(job: dict) -> nn.Module:
        redo = job.get("checkpointing", False)
        settings = given(job) | unknown
        return kind.from_config(settings, activation_checkpointing=redo)

    def reference(job: dict) -> nn.Module:
        return getattr(reference_module(place), name)(**given(job))

    return build, reference


MSST = "msst.models"
ROFORMER = {"dim": 384, "stereo": True, "stft_hop_length": 441, "flash_attn": True}
ROFORMER |= {"time_transformer_depth": 1, "freq_transformer_depth": 1}
ROFORMER |= {"mask_estimator_depth": 2, "attn_dropout": 0.0, "ff_dropout": 0.0}
STEMS = ROFORMER | {"num_stems": 4, "mlp_expansion_factor": 2}
VOCALS = ROFORMER | {"num_stems": 1, "mlp_expansion_factor": 4}
VOCALS |= {"match_input_audio_length": True}
BS = f"{MSST}.bs_roformer.bs_roformer", "BSRoformer"
MEL = f"{MSST}.bs_roformer.mel_band_roformer", "MelBandRoformer"
OLD = "bs_roformer.bs_roformer", "BSRoformer"
SCNET = f"{MSST}.scnet.scnet", "SCNet"
SPEECH = 4 * 8000, 4 * 8000
MODELS = {
    "mossformer2": Model(
        SPEECH, (24, 24), ours(MossFormer2, "layers"), reference_mossformer2
    ),
    "sepformer": Model(
        SPEECH,
        (8, 8),
        ours(SepFormer, "intra_layers", "inter_layers"),
        lambda job: ReferenceSepFormer(job["layers"]),
    ),
    "htdemucs": Model(
        (15 * 44100, 343980),
        (5, 5),
        our_htdemucs,
        lambda job: reference_htdemucs(job["layers"], job["samples"]),
        True,
    ),
    "bs_roformer": Model(
        (88200, 88200), (2, 8), *music(BSRoFormer, *BS, STEMS, "depth"), True
    ),
    # One stem, by lucidrains' own package: expansion 4 and zero_dc are not keys there,
    # and the estimate ends with the last whole hop.
    "bs_roformer_0.3.10": Model(
        (88200, 88200),
        (2, 12),
        *music(BSRoFormer, *OLD, ROFORMER, "depth", zero_dc=False),
        True,
    ),
    "mel_roformer": Model(
        (88200, 88200), (2, 6), *music(MelRoFormer, *MEL, VOCALS, "depth"), True
    ),
    "scnet": Model(
        (4 * 44100, 4 * 44100),
        (3, 3),
        *music(SCNet, *SCNET, {"sources": SOURCES}, "num_dplayer"),
        True,
    ),
    "tf_locoformer": Model((16000, 16000), (2, 6), ours(TFLocoformer, "layers"), None),
    "sepreformer": Model((16000, 16000), (4, 4), ours(SepReformer, "stages"), None),
}


def build(job: dict) -> nn.Module:
    """Build either side of a job."""
    model = MODELS[job["model"]]
    job = {**job, "layers": job.get("layers") or model.layers[1]}
    if job["side"] != "reference":
        return model.ours(job)
    if model.reference is None:
        sys.exit(f"benchmark: {job['model']} has no reference here")
    return model.reference(job)


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
        apply_model = reference_module("demucs.apply").apply_model
    else:
        from modules.inference.songs import apply_model
    return apply_model(model, mixture_BT, shifts=0)


def make_mixture(job: dict) -> Tensor:
    """Return noise [1, T], or [1, 2, T] for music."""
    shape = (1, 2) if MODELS[job["model"]].stereo else (1,)
    return 0.1 * torch.randn(*shape, job["samples"])


# ---------------------------------------------------------------- one process


def measure(job: dict) -> Figures:
    """Time one variant in this process and return seconds and megabytes."""
    torch.manual_seed(0)
    model = build(job).train(job["train"])
    mixture_BT = make_mixture(job)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    held_mb = pages * resource.getpagesize() / 2**20
    step = partial(run_step, job, model, mixture_BT)
    figures = [call(step) for _ in range(1 + job["steps"])][1:]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return min(figures, key=lambda f: f[CPU]) | {STEP: peak_mb - held_mb}


def run_step(job: dict, model: nn.Module, mixture_BT: Tensor) -> None:
    """Run one inference, or one forward and backward pass."""
    train, half = job["train"], job.get("precision") == "bf16"
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
    ours = build(job | {"side": "ours"}).eval()
    has_reference = MODELS[job["model"]].reference is not None
    reference = build(job | {"side": "reference"}).eval() if has_reference else ours
    ours.load_state_dict(reference.state_dict(), strict=True)
    mixture_BT = make_mixture(job)
    with torch.no_grad():
        truth, estimate = forward(reference, mixture_BT), forward(ours, mixture_BT)
        with torch.autocast("cpu", torch.bfloat16):
            half = forward(ours, mixture_BT)
    error = half.float() - truth
    ratio = truth.square().sum() / error.square().sum()
    return {
        "max_difference": (estimate - truth).abs().max().item(),
        "peak": truth.abs().max().item(),
        "bf16_snr_db": (10 * torch.log10(ratio)).item(),
    }


def in_fresh_process(job: dict, reference: list[str]) -> dict[str, float]:
    """Run `measure` or `compare` in a process of its own."""
    paths = filter(None, [os.environ.get("PYTHONPATH"), *reference])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "benchmarks.models", "--job", json.dumps(job)]
    return report(command, env=environment)


# ---------------------------------------------------------------- the table


def benchmark(name: str, arguments: argparse.Namespace, seconds: float) -> list[str]:
    """Measure one model within the seconds and return its lines of markdown."""
    start, model = time.monotonic(), MODELS[name]
    layers = arguments.layers or model.layers[0]
    base = {"model": name, "layers": layers, "steps": arguments.steps}
    lengths = [arguments.samples or samples for samples in model.samples]

    def run(**options: object) -> dict[str, float]:
        return in_fresh_process({**base, **options}, arguments.reference)

    same = run(side="both", samples=lengths[1])
    if same["max_difference"] > 1e-5 * same["peak"]:
        sys.exit(
            f"benchmark: {name} differs from its reference by "
            f"{same['max_difference']:.1e} (peak {same['peak']:.1e})"
        )
    beside = "no reference" if model.reference is None else "same weights"
    lines = [
        f"### {name}, {layers} of {model.layers[1]} layers, {lengths[0]} samples "
        f"(inference), {lengths[1]} (train step), batch 1, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}",
        "",
        f"{beside.capitalize()}: largest difference {same['max_difference']:.1e} at an "
        f"output peak of {same['peak']:.1e}; bf16 {same['bf16_snr_db']:.1f} dB.",
        "",
        *header((WALL, CPU, STEP)),
    ]
    more = LEAN if name == "htdemucs" else {}
    for train, variants in enumerate((INFERENCE, TRAIN | more)):
        kind = ("inference", "train")[train]
        job = {"samples": lengths[train], "train": bool(train)}
        sides = {
            variant: partial(run, side="ours", **job, **options)
            for variant, options in variants.items()
            if f"{kind} {variant}" in (arguments.variants or [f"{kind} {variant}"])
        }
        if not sides:
            continue
        if model.reference is not None:
            sides = {"reference": partial(run, side="reference", **job), **sides}
        share = (seconds + start - time.monotonic()) / (2 - train)
        results = take_turns(sides, arguments.repeats, share)
        lines += rows(f"{kind} ", results, (WALL, CPU, STEP))
    return [*lines, ""]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    known = [f"inference {name}" for name in INFERENCE]
    known += [f"train {name}" for name in TRAIN | LEAN]
    add("--variants", nargs="+", choices=known, help="default: all of the model")
    add("--layers", type=int, help="of every network (default: see above)")
    add("--repeats", type=int, default=3, help="turns, where there is time")
    add("--steps", type=int, default=1, help="timed steps of a process")
    add("--samples", type=int, help="length of the mixture (default: the model's)")
    add("--budget", type=float, default=25, help="minutes of the whole table")
    add("--reference", nargs="+", default=[], help="folders of pip's --target")
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
    until, lines = time.monotonic() + 60 * arguments.budget, []
    for number, model in enumerate(arguments.models):
        left = until - time.monotonic()
        lines += benchmark(model, arguments, left / (len(arguments.models) - number))
        text = "\n".join(lines)
        if arguments.out:
            arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
