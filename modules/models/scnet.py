"""SCNet: separation of music on a spectrogram whose bands have their own resolution.

Tong et al. (ICASSP 2024, arXiv 2401.13276), with the keys and the numbers of the
authors' code and of MSST (``msst`` 0.1.0 on PyPI):

    mixture -> STFT -> encoder -> dual-path layers -> decoder -> inverse STFT

An encoder layer splits the frequencies into three bands; the higher one, the more it is
reduced. The dual-path layers run along frequency and along time; between two of them
lies a Fourier transform along time. Decoder layers undo the encoder's, each with what
the encoder had there. The spectra of the sources come out as they are, without masks.

Legend of the shape suffixes
    B batch, S source, C audio channel, T sample, N frame, F frequency, D feature,
    Z audio channel with real and imaginary part in turn, X sequence of L elements.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

STEMS = ("drums", "bass", "other", "vocals")

#: The reference's keys: the arguments that they are here, and what it takes without.
KEYS: dict[str, tuple[str, Any]] = {
    "sources": ("sources", STEMS),
    "audio_channels": ("audio_channels", 2),
    "dims": ("channels", (4, 32, 64, 128)),
    "nfft": ("n_fft", 4096),
    "hop_size": ("hop", 1024),
    "win_size": ("window_length", 4096),
    "normalized": ("normalized", True),
    "band_SR": ("band_shares", (0.175, 0.392, 0.433)),
    "band_stride": ("band_strides", (1, 4, 16)),
    "band_kernel": ("band_kernels", (3, 4, 16)),
    "conv_depths": ("conv_depths", (3, 2, 1)),
    "compress": ("compression", 4),
    "conv_kernel": ("kernel_size", 3),
    "num_dplayer": ("dual_layers", 6),
    "expand": ("expansion", 1),
}


class SCNet(nn.Module):
    """SCNet: ``mixture_BCT -> estimate_BSCT``.

    The defaults are the published small network (10.6 M parameters for four sources).
    The large one (42.2 M): channels 64, 128, 256, band_shares 0.225, 0.372, 0.403.

    Norms run over the whole input: the estimate of a part is not the part of the
    estimate. Examples of a batch do not see each other. Other values and shapes are a
    ValueError.

    Arguments
    ---------
    sources : Sequence[str]
        Names of the sources, in the order of the output.
    segment_seconds : float | str
        Length of the pieces that songs are cut into; "485100/44100" is a fraction.
    sample_rate, audio_channels : int
        Of the mixture and of each source.
    channels : Sequence[int]
        Features after each layer of the encoder.
    n_fft, hop, window_length : int
        Samples of a frame, between two frames, and of the window (0: n_fft).
    normalized, normalize_spectrum : bool
        Divide the spectrum by the root of n_fft; bring it to mean 0 and deviation 1,
        and the estimates back, as the authors do since September 2024.
    band_shares, band_strides, band_kernels : Sequence
        Share of the frequencies of each band, the factor by which it is reduced, and
        the frequencies of a filter there.
    conv_depths : Sequence[int]
        Residual layers along time, for each band.
    compression, kernel_size : int
        Reduction of the features inside such a layer, and the frames of its filters.
    dual_layers, expansion : int
        Dual-path layers, an even number, and the features of an LSTM's state as a
        multiple of those of its input.
    residual, song_level : bool
        The last source is the mixture minus the others; songs are brought to one level
        before they are separated (MSST's own large network takes them as they are).
    activation_checkpointing : bool
        Compute each layer again in the backward pass, to save memory.

    Example
    -------
    >>> size = {"channels": [4, 8], "n_fft": 256, "hop": 64, "dual_layers": 2}
    >>> SCNet(["drums", "rest"], **size)(torch.randn(3, 2, 1001)).shape
    torch.Size([3, 2, 2, 1001])
    """

    def __init__(
        self,
        sources: Sequence[str] = STEMS,
        segment_seconds: float | str = 11,
        sample_rate: int = 44100,
        *,
        audio_channels: int = 2,
        channels: Sequence[int] = (32, 64, 128),
        n_fft: int = 4096,
        hop: int = 1024,
        window_length: int = 0,
        normalized: bool = True,
        normalize_spectrum: bool = False,
        band_shares: Sequence[float] = (0.175, 0.392, 0.433),
        band_strides: Sequence[int] = (1, 4, 16),
        band_kernels: Sequence[int] = (3, 4, 16),
        conv_depths: Sequence[int] = (3, 2, 1),
        compression: int = 4,
        kernel_size: int = 3,
        dual_layers: int = 6,
        expansion: int = 1,
        residual: bool = False,
        song_level: bool = True,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        window_length = window_length or n_fft
        bands = len(band_shares)
        for name, fits in {
            "sources": len(sources) > residual,
            "audio_channels": audio_channels > 0,
            "channels": len(channels) > 0 and min(channels) >= max(1, compression),
            "hop": 0 < 2 * hop <= window_length <= n_fft and n_fft % 2 == 0,
            "band_shares": bands > 0 and min(band_shares) > 0 and sum(band_shares) < 2,
            "band_strides": len(band_strides) == bands and min(band_strides) > 0,
            "band_kernels": len(band_kernels) == bands and min(band_kernels) > 0,
            "conv_depths": len(conv_depths) == bands and min(conv_depths) >= 0,
            "compression": compression > 0,
            "kernel_size": kernel_size > 0 and kernel_size % 2 == 1,
            "dual_layers": dual_layers >= 0 == dual_layers % 2,
            "expansion": expansion > 0,
        }.items():
            if not fits:
                raise ValueError(
                    f"SCNet: {name}={vars()[name]!r} is out of range, or not for the "
                    "other arguments"
                )
        self.segment = Fraction(str(segment_seconds))
        self.sources, self.sample_rate = list(sources), sample_rate
        self.audio_channels, self.n_fft, self.hop = audio_channels, n_fft, hop
        #: Arguments that leave no trace in the shapes of the weights.
        self.config = {
            "n_fft": n_fft,
            "hop": hop,
            "normalized": normalized,
            "normalize_spectrum": normalize_spectrum,
            "residual": residual,
            "song_level": song_level,
            "band_shares": list(band_shares),
            "band_strides": list(band_strides),
        }
        self.song_level = song_level
        self.activation_checkpointing = activation_checkpointing
        around = (n_fft - window_length) // 2, (n_fft - window_length + 1) // 2
        window = F.pad(torch.ones(window_length), around)
        self.window: Any = nn.Buffer(window, persistent=False)

        spread = [*zip(band_kernels, band_strides, strict=True)]
        convs = conv_depths, compression, kernel_size
        self.encoder: Any = nn.ModuleList()
        self.decoder: Any = nn.ModuleList()
        frequencies = n_fft // 2 + 1
        widths = [2 * audio_channels, *channels]
        for level, (outside, inside) in enumerate(pairwise(widths)):
            lengths = _split(frequencies, band_shares)
            layer = EncoderLayer(outside, inside, lengths, spread, *convs)
            self.encoder.append(layer)
            out = outside if level else outside * (len(sources) - residual)
            fusion = nn.ModuleDict({"conv": nn.Conv2d(2 * inside, 2 * inside, 3, 1, 1)})
            up = Upsampling(inside, out, lengths, layer.reduced, spread)
            if min(lengths) < 1 or not up.is_long_enough:
                raise ValueError(
                    f"SCNet: bands of {lengths} frequencies at level {level} do not "
                    f"suit {band_shares=}, {band_strides=}, {band_kernels=}, {n_fft=}"
                )
            self.decoder.insert(0, nn.ModuleList([fusion, up]))
            frequencies = sum(layer.reduced)
        layers = [
            DualPath(widths[-1] * (1 + number % 2), expansion)
            for number in range(dual_layers)
        ]
        self.separation_net: Any = nn.ModuleDict({"dp_modules": nn.ModuleList(layers)})

    def forward(self, mixture_BCT: Tensor) -> Tensor:
        """Return ``estimate_BSCT``, as long as the mixtures, of any length T >= 1."""
        batch, *rest = mixture_BCT.shape
        if rest[:-1] != [self.audio_channels] or not rest[-1]:
            wanted = f"[batch, {self.audio_channels} channels, samples >= 1]"
            raise ValueError(f"mixture: expected {wanted}, got {[batch, *rest]}")
        samples, device = rest[-1], mixture_BCT.device.type
        # An even number of frames; reflection needs more samples than it adds.
        hops = max(samples // self.hop + 1, self.n_fft // 2 // self.hop + 1)
        padded = (hops + 1 - hops % 2) * self.hop
        with torch.autocast(device, enabled=False):
            wave_XT = _widen(mixture_BCT).flatten(0, 1)
            framing: Any = {"n_fft": self.n_fft, "hop_length": self.hop}
            framing["window"] = self.window.to(wave_XT.dtype)
            framing["normalized"] = self.config["normalized"]
            wave_XT = F.pad(wave_XT, (0, padded - samples))
            spectrum_XFN = torch.stft(wave_XT, **framing, return_complex=True)
            parts_BCFN2 = torch.view_as_real(spectrum_XFN).unflatten(0, (batch, -1))
            x_BZFN = parts_BCFN2.permute(0, 1, 4, 2, 3).flatten(1, 2)
            mean: Any = 0.0
            scale: Any = 1.0
            if self.config["normalize_spectrum"]:
                mean = x_BZFN.mean((1, 2, 3), keepdim=True)
                scale = x_BZFN.std((1, 2, 3), keepdim=True)
                x_BZFN = (x_BZFN - mean) / (1e-5 + scale)
        x_BZFN = self._networks(x_BZFN)
        with torch.autocast(device, enabled=False):
            x_BZFN = _widen(x_BZFN) * scale + mean
            shape = -1, self.audio_channels, 2
            re, im = x_BZFN.unflatten(1, shape).unbind(3)
            estimate_BSCFN = torch.complex(re, im)
            framing["length"] = padded
            estimate_XT = torch.istft(estimate_BSCFN.flatten(0, 2), **framing)
        parts = [*estimate_XT[:, :samples].unflatten(0, re.shape[:3]).unbind(1)]
        if self.config["residual"]:
            parts.append(mixture_BCT - sum(parts))
        return torch.stack(parts, dim=1).to(mixture_BCT.dtype)

    def _networks(self, x_BDFN: Tensor) -> Tensor:
        """Return the spectra of the sources."""
        skips = []
        for layer in self.encoder:
            skip_BDFN, x_BDFN = self._run(layer, x_BDFN)
            skips.append(skip_BDFN)
        for number, layer in enumerate(self.separation_net["dp_modules"]):
            x_BDFN = self._run(layer, x_BDFN)
            x_BDFN = _inverse(x_BDFN) if number % 2 else _transform(x_BDFN)
        for fusion, up in self.decoder:
            # The reference's input has every feature twice: its filters add up.
            conv, x_BDFN = fusion["conv"], x_BDFN + skips.pop()
            weight = sum(conv.weight.chunk(2, dim=1))
            wide_BDFN = F.conv2d(x_BDFN, weight, conv.bias, padding=1)
            x_BDFN = self._run(up, F.glu(wide_BDFN, dim=1))
        return x_BDFN

    def _run(self, module: nn.Module, *given: Any) -> Any:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(module, *given, use_reentrant=False)
        return module(*given)

    @staticmethod
    def from_config(config: Mapping[str, Any], **arguments: Any) -> "SCNet":
        """Build the network that a configuration of the reference describes.

        It has the keys of the reference's constructor, or these below ``model`` as in
        MSST; ``arguments`` of this class come before them. A ValueError is raised for
        what is unknown here.
        """
        config = config.get("model", config)
        if odd := set(config) - set(KEYS):
            raise ValueError(f"SCNet: unknown {', '.join(sorted(odd))}")
        known = {
            name: config.get(key, default) for key, (name, default) in KEYS.items()
        }
        first, *known["channels"] = known["channels"]
        if first != 2 * known["audio_channels"]:
            raise ValueError(
                f"SCNet: dims begin with {first}, not with twice the audio_channels "
                f"({known['audio_channels']})"
            )
        return SCNet(**known | arguments)


class EncoderLayer(nn.Module):
    """Reduces each band, and mixes what is left of them."""

    def __init__(
        self,
        channels: int,
        width: int,
        lengths: Sequence[int],
        spread: Sequence[tuple[int, int]],
        conv_depths: Sequence[int],
        compression: int,
        kernel_size: int,
    ) -> None:
        super().__init__()
        convs = [nn.Conv2d(channels, width, (k, 1), (s, 1)) for k, s in spread]
        self.SDlayer: Any = nn.ModuleDict({"convs": nn.ModuleList(convs)})
        hidden = width // compression
        self.conv_modules = nn.ModuleList(
            TimeConvs(width, hidden, kernel_size, depth) for depth in conv_depths
        )
        self.globalconv = nn.Conv2d(width, width, 3, 1, 1)
        self.lengths = list(lengths)
        self.paddings = [
            (kernel - 1) if stride == 1 else -length % stride
            for length, (kernel, stride) in zip(lengths, spread, strict=True)
        ]
        self.reduced = [
            (length + padding - kernel) // stride + 1
            for length, padding, (kernel, stride) in zip(
                lengths, self.paddings, spread, strict=True
            )
        ]

    def forward(self, x_BDFN: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the decoder gets, and what the next layer gets."""
        bands = []
        for band_BDFN, padding, conv, convs in zip(
            x_BDFN.split(self.lengths, dim=2),
            self.paddings,
            self.SDlayer["convs"],
            self.conv_modules,
            strict=True,
        ):
            around = 0, 0, padding // 2, padding - padding // 2
            bands.append(F.gelu(convs(conv(F.pad(band_BDFN, around)))))
        skip_BDFN = torch.cat(bands, dim=2)
        return skip_BDFN, self.globalconv(skip_BDFN)


class TimeConvs(nn.Module):
    """Residual convolutions along time, for each frequency by itself."""

    def __init__(self, width: int, hidden: int, kernel_size: int, depth: int) -> None:
        super().__init__()
        pad = kernel_size // 2
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, width),
                nn.Conv1d(width, 2 * hidden, kernel_size, padding=pad),
                nn.GLU(dim=1),
                nn.Conv1d(hidden, hidden, kernel_size, padding=pad, groups=hidden),
                nn.GroupNorm(1, hidden),
                nn.SiLU(),
                nn.Conv1d(hidden, width, 1),
            )
            for _ in range(depth)
        )

    def forward(self, x_BDFN: Tensor) -> Tensor:
        x_BFDN = x_BDFN.transpose(1, 2)
        x_XDN = x_BFDN.flatten(0, 1)
        for layer in self.layers:
            x_XDN = x_XDN + layer(x_XDN)
        return x_XDN.unflatten(0, x_BFDN.shape[:2]).transpose(1, 2)


class DualPath(nn.Module):
    """A bidirectional LSTM along frequency and one along time, each with a residual."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        hidden = width * expansion
        self.lstm_layers, self.linear_layers, self.norm_layers = (
            nn.ModuleList(make() for _ in ("frequency", "time"))
            for make in (
                lambda: nn.LSTM(width, hidden, batch_first=True, bidirectional=True),
                lambda: nn.Linear(2 * hidden, width),
                lambda: nn.GroupNorm(1, width),
            )
        )

    def forward(self, x_BDFN: Tensor) -> Tensor:
        layers = zip(
            self.norm_layers, self.lstm_layers, self.linear_layers, strict=True
        )
        for axis, (norm, lstm, linear) in zip((2, 3), layers, strict=True):
            axes = 0, 5 - axis, axis, 1
            rows_BXLD = norm(x_BDFN).permute(axes)
            seen_XLD = linear(lstm(rows_BXLD.flatten(0, 1))[0])
            seen_BXLD = seen_XLD.unflatten(0, rows_BXLD.shape[:2])
            back = [axes.index(axis) for axis in range(4)]
            x_BDFN = x_BDFN + seen_BXLD.permute(back)
        return x_BDFN


class Upsampling(nn.Module):
    """Gives each band the frequencies that it had before the encoder's layer."""

    def __init__(
        self,
        width: int,
        channels: int,
        lengths: Sequence[int],
        reduced: Sequence[int],
        spread: Sequence[tuple[int, int]],
    ) -> None:
        super().__init__()
        convs = [nn.ConvTranspose2d(width, channels, (k, 1), (s, 1)) for k, s in spread]
        self.convtrs = nn.ModuleList(convs)
        self.lengths, self.reduced = list(lengths), list(reduced)
        self.is_long_enough = all(
            count > 0 and (count - 1) * stride + kernel >= length
            for count, length, (kernel, stride) in zip(
                reduced, lengths, spread, strict=True
            )
        )

    def forward(self, x_BDFN: Tensor) -> Tensor:
        bands = []
        parts = x_BDFN.split(self.reduced, dim=2)
        for part, length, conv in zip(parts, self.lengths, self.convtrs, strict=True):
            band = conv(part)
            first = (band.shape[2] - length) // 2
            bands.append(band[:, :, first : first + length])
        return torch.cat(bands, dim=2)


def _split(frequencies: int, shares: Sequence[float]) -> list[int]:
    """Return how many frequencies each band has; the last one takes what is left."""
    ends = [math.ceil(frequencies * share) for share in accumulate(shares[:-1])]
    return [stop - start for start, stop in pairwise([0, *ends, frequencies])]


def _transform(x_BDFN: Tensor) -> Tensor:
    """Transform along time; imaginary parts follow real ones along D."""
    with torch.autocast(x_BDFN.device.type, enabled=False):
        spectrum = torch.fft.rfft(_widen(x_BDFN), norm="ortho")
        return torch.cat([spectrum.real, spectrum.imag], dim=1)


def _inverse(x_BDFN: Tensor) -> Tensor:
    """Undo `_transform`."""
    with torch.autocast(x_BDFN.device.type, enabled=False):
        re, im = _widen(x_BDFN).chunk(2, dim=1)
        return torch.fft.irfft(torch.complex(re, im), norm="ortho")


def _widen(x: Tensor) -> Tensor:
    """Return float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
