"""Separate arrays and files by a trained model.

    separator = Separator.load("results/mossformer2/1234", device="cuda")
    talkers = separator.separate(wave_CT, sample_rate=44100)  # {"s1": wave_CT, ...}
    separator.separate_file("meeting.flac", "separated", format="flac")

Audio of any length takes the same memory: it is read, separated and written piece by
piece. Shapes: S source, C channel, T or t sample.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modules.audio.io import Header, check_samples, open_audio, read_header, safe_name
from modules.audio.resample import resample_blocks
from modules.audio.sets import Clip, Format, Subtype, subtype_of, write_set
from modules.inference.songs import Bag
from modules.inference.streams import (
    Blocks,
    Passes,
    SpeechBag,
    Views,
    Window,
    channels_of,
    separate_blocks,
)
from modules.runtime.devices import check_device
from modules.runtime.errors import AudioError, DataError, HparamsError, PretrainedError
from modules.weights.separators import Loaded, load_separators

READ_FRAMES = 2**16

REST = "rest"

# What is done where neither the command nor the run says it.
DEFAULTS = {"chunk_seconds": 16.0, "overlap": 0.25, "shifts": 0, "seed": 0}


@dataclass(frozen=True)
class Computing:
    """How a model is run.

    Arguments
    ---------
    device : str
        cpu, cuda or cuda:NUMBER; the GPU if there is one.
    precision : str
        bf16 is faster on GPUs.
    chunk_seconds : float | None
        Speech that is longer is separated in chunks; music has its model's segments.
        What the run tested with, or 16.
    overlap : float | None
        Share of a chunk or segment that the next one repeats. What the run tested with,
        or 0.25.
    segments_per_call : int | None
        Chunks or segments in a call of the network: memory grows with it, on a GPU
        speed too. 1 on the CPU, else 4.
    shifts : int | None
        Separate music so many times, moved by up to half a second each, and average;
        0 is once, not moved. What the run tested with, or 0.
    seed : int | None
        Draws the shifts. The run's, or 0.
    tta : bool
        Average over the mixture, its negative, and stereo with its channels swapped:
        two to four times the work.
    """

    device: str | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    chunk_seconds: float | None = None
    overlap: float | None = None
    segments_per_call: int | None = None
    shifts: int | None = None
    seed: int | None = None
    tta: bool = False

    def __post_init__(self) -> None:
        if self.device is not None:
            check_device(self.device)
        for name, least, most in (
            ("chunk_seconds", 0.1, 1e6),
            ("overlap", 1e-3, 0.99),
            ("segments_per_call", 1, 2**20),
            ("shifts", 0, 1000),
            ("seed", 0, 2**32 - 1),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise HparamsError(f"--{name}={value}: must be {least:g} to {most:g}")

    def passes(
        self, sample_rate: int, tested: Mapping[str, Any], on_cpu: bool
    ) -> Passes:
        """Return what was given, else what the run `tested` with, else the defaults."""
        ways = {**DEFAULTS, **{k: v for k, v in tested.items() if v is not None}}
        given = {name: getattr(self, name) for name in DEFAULTS}
        ways |= {name: value for name, value in given.items() if value is not None}
        chunk = round(ways.pop("chunk_seconds") * sample_rate)
        return Passes(chunk, self.segments_per_call or (1 if on_cpu else 4), **ways)


@dataclass(frozen=True)
class Output:
    """What is returned or written of a mixture, and how.

    Arguments
    ---------
    stems : Sequence[str] | None
        Stems that are wanted, separated by commas; all without it.
    rest : bool
        Give also the mixture minus these stems, as "rest".
    channels : str
        Models of one channel separate each channel, or the mean of all.
    name : str
        Places of the files in the output folder, without suffix.
    format : str
        Format of the files.
    subtype : str
        float (default of wav), pcm16 or pcm24 (default of flac).
    clip : str
        In pcm16 and pcm24, what exceeds full scale: scale lowers all stems of a file
        by one factor, clamp clips, error refuses the file.
    """

    stems: Sequence[str] | None = None
    rest: bool = False
    channels: Literal["each", "mean"] = "each"
    name: str = "{name}/{stem}"
    format: Format = "wav"
    subtype: Subtype | None = None
    clip: Clip = "scale"

    def __post_init__(self) -> None:
        subtype_of(self.format, self.subtype)
        if "{stem}" not in self.name or "{name}" not in self.name:
            raise HparamsError(f"--name={self.name}: must hold {{name}} and {{stem}}")

    def names(self, sources: Sequence[str]) -> list[str]:
        """Return the stems that are wanted of a model's sources, and the rest."""
        if unknown := sorted(set(self.stems or ()) - set(sources)):
            raise HparamsError(
                f"--stems: the model has no {', '.join(unknown)}; it has "
                + ", ".join(sources)
            )
        chosen = [stem for stem in sources if not self.stems or stem in self.stems]
        return [*chosen, REST] if self.rest else chosen

    def paths(
        self, out: str | Path, name: str, sources: Sequence[str]
    ) -> dict[str, Path]:
        """Return the file of each stem.

        >>> Output(name="{name}_{stem}").paths("out", "live/song", ["bass"])["bass"]
        PosixPath('out/live/song_bass.wav')
        """
        pattern = f"{self.name}.{self.format}".replace("{name}", name)
        return {
            stem: Path(out, pattern.replace("{stem}", safe_name(stem)))
            for stem in self.names(sources)
        }


class Separator:
    """A model ready to separate audio of any rate, length and number of channels.

    The network maps `[B, T] -> [B, S, T]`, or for music `[B, C, T] -> [B, S, C, T]`;
    `sources` names its estimates in their order.
    """

    def __init__(
        self,
        network: Any,
        sample_rate: int,
        sources: Sequence[str],
        computing: Computing | None = None,
        tested: Mapping[str, Any] | None = None,
    ) -> None:
        self.computing = computing = computing or Computing()
        if computing.shifts and not hasattr(network, "segment"):
            raise HparamsError("--shifts: is for music; this model separates speech")
        device = computing.device or ("cuda" if torch.cuda.is_available() else "cpu")
        network = network.to(device)
        if computing.precision == "bf16":
            for one in getattr(network, "models", [network]):
                _compute_in_bf16(one, torch.device(device).type)
        if computing.tta and hasattr(network, "models"):
            network.models = nn.ModuleList(Views(one) for one in network.models)
        elif computing.tta:
            network = Views(network)
        self.network = network.eval()
        self.on_cpu = torch.device(device).type == "cpu"
        self.sample_rate, self.sources = sample_rate, list(sources)
        self.tested = dict(tested or {})

    @classmethod
    def load(
        cls, model: str | Path, sample_rate: int | None = None, **computing: Any
    ) -> "Separator":
        """Load a model by `load_model`, to be run as `Computing` says."""
        network, rate, sources, tested = load_model(model, sample_rate)
        return cls(network, rate, sources, Computing(**computing), tested)

    def separate(
        self, wave_CT: Tensor, sample_rate: int, **output: Any
    ) -> dict[str, Tensor]:
        """Separate an array.

        Arguments
        ---------
        wave_CT : Tensor
            Full scale at 1.
        sample_rate : int
            Its rate in Hz.
        output
            `stems`, `rest` and `channels` of `Output`.

        Returns
        -------
        dict[str, Tensor]
            Estimates [C, T] by name, at the rate and length of the mixture. A model for
            stereo gives two channels for one.

        Raises
        ------
        DataError, HparamsError
            The array does not suit the model; an option is wrong.
        """
        options = Output(**output)
        names = options.names(self.sources)
        wave_CT = torch.as_tensor(wave_CT, dtype=torch.float32, device="cpu")
        if wave_CT.dim() != 2 or not wave_CT.numel():
            raise DataError(f"audio must be [C, T >= 1], got {list(wave_CT.shape)}")
        parts = list(
            self._stream(
                lambda: wave_CT.split(READ_FRAMES, dim=-1),
                *("audio", Header(sample_rate, *wave_CT.shape), names),
                options.channels == "mean",
            )
        )
        return {name: torch.cat([p[name] for p in parts], dim=-1) for name in names}

    def separate_file(
        self, path: str | Path, out: str | Path, **output: Any
    ) -> dict[str, Path]:
        """Separate a file into `out`, in constant memory; return the stems' files.

        The options are those of `Output`. Errors are DataErrors, and leave no file.
        """
        options = Output(**output)
        paths = options.paths(out, Path(path).stem, self.sources)
        self.write_stems(path, paths, options)
        return paths

    def write_stems(
        self,
        path: str | Path,
        paths: dict[str, Path],
        output: Output,
        progress: Callable[[float], object] = lambda seconds: None,
    ) -> float:
        """Write the stems of a file to these paths.

        `progress` gets the seconds of audio of each piece that is done. The result is
        by how many dB all were lowered, see `write_set`.
        """
        header = read_header(path)

        def arrays() -> Iterator[dict]:
            mean = output.channels == "mean"
            for part in self._stream(
                lambda: _read_blocks(path, header), path, header, list(paths), mean
            ):
                for name, wave_Ct in part.items():
                    if not wave_Ct.isfinite().all():
                        raise DataError(f"{path}: the model gave NaN or Inf for {name}")
                yield {name: wave_Ct.numpy() for name, wave_Ct in part.items()}
                progress(wave_Ct.shape[-1] / header.sample_rate)

        style = output.format, output.subtype, output.clip
        return write_set(paths, arrays(), header.sample_rate, *style, header.frames)

    @torch.no_grad()
    def _stream(
        self,
        blocks: Blocks,
        source: str | Path,
        header: Header,
        names: Sequence[str],
        mean: bool,
    ) -> Iterator[dict[str, Tensor]]:
        """Yield estimates [C, t] by name, at the mixture's rate."""
        rate, found, frames = header
        taken = channels_of(self.network, 1 if mean else found)
        if not mean and found not in (1, taken):
            raise DataError(
                f"{source}: has {found} channels, the model takes {taken}; use "
                "--channels=mean"
            )

        def mixture() -> Iterator[Tensor]:
            for block_Ct in blocks():
                block_Ct = block_Ct.mean(dim=0, keepdim=True) if mean else block_Ct
                yield block_Ct.expand(taken, -1)

        chosen = separate_blocks(
            self.network,
            lambda: resample_blocks(mixture(), rate, self.sample_rate),
            -(-frames * self.sample_rate // rate),
            self.computing.passes(self.sample_rate, self.tested, self.on_cpu),
            [self.sources.index(name) for name in names if name != REST],
        )
        read, done = Window(mixture()), 0
        for est_SCt in resample_blocks(chosen, self.sample_rate, rate):
            est_SCt = est_SCt[..., : frames - done]  # resampling may add a sample
            if not est_SCt.shape[-1]:
                continue
            block = dict(zip(names, est_SCt, strict=False))
            stop = done + est_SCt.shape[-1]
            if REST in names:
                block[REST] = read(done, stop) - est_SCt.sum(dim=0)
            done = stop
            yield block


def load_model(model: str | Path, sample_rate: int | None = None) -> Loaded:
    """Load a model, or a list of models as one, see `load_separators`."""
    models, weights_MS = load_separators(model, sample_rate)
    first, *others = models
    if weights_MS is None and not others:
        return first
    is_music = hasattr(first.network, "segment")
    for other in others:
        if other[1:3] != first[1:3] or hasattr(other.network, "segment") != is_music:
            ways = [f"{one.sample_rate} Hz {one.sources}" for one in (first, other)]
            raise PretrainedError(f"{model}: its models differ: {' and '.join(ways)}")
    if weights_MS and len(weights_MS[0]) != len(first.sources):
        raise PretrainedError(
            f"{model}: weights: needs a number for each of {', '.join(first.sources)}"
        )
    bag = (Bag if is_music else SpeechBag)([one.network for one in models], weights_MS)
    return Loaded(bag, *first[1:])


def _compute_in_bf16(network: nn.Module, device: str) -> None:
    """Run the network's forward pass under autocast, with results in float32."""
    forward = torch.autocast(device, torch.bfloat16)(network.forward)
    network.forward = lambda x: forward(x).float()


def _read_blocks(path: str | Path, header: Header) -> Iterator[Tensor]:
    with open_audio(path) as file:
        for start in range(0, header.frames, READ_FRAMES):
            expected = min(READ_FRAMES, header.frames - start)
            wave_tC = file.read(start, expected)
            if len(wave_tC) < expected:
                raise AudioError(
                    f"{path}: holds {start + len(wave_tC)} of {header.frames} samples; "
                    "the file is truncated or has changed"
                )
            check_samples(path, wave_tC)
            yield torch.from_numpy(wave_tC.T)
