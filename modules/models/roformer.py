"""BS-RoFormer and Mel-Band RoFormer: separation of music by masks on its spectrogram.

Lu et al. (arXiv 2309.02612), Wang et al. (arXiv 2310.01809), with the keys and the
numbers of the code that the community trains (MSST; ``msst`` 0.1.0 on PyPI). The bins
of a band become one vector; a block is a transformer along time and one along the
bands; complex masks come last. The bands of BS-RoFormer lie side by side, those of
Mel-Band RoFormer overlap, and the masks of a bin are averaged.

Legend of the shape suffixes
    B batch, S source, C audio channel, T sample, N frame, F bin, K band, D feature,
    Z number of a band (bin, channel, real and imaginary part), X sequence, L element,
    H head, E feature of a head.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import accumulate, chain, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ROWS = 2**15  # sequences of a call of attention: CUDA's kernels take less than twice
BANDS = (2,) * 24 + (4,) * 12 + (12,) * 8 + (24,) * 8 + (48,) * 8 + (128, 129)

#: The reference's keys: the arguments that they are here, and what it takes without.
KEYS: dict[str, tuple[str, Any]] = {
    "dim": ("channels", 0),
    "depth": ("layers", 0),
    "stereo": ("audio_channels", False),
    "num_stems": ("sources", 1),
    "time_transformer_depth": ("time_layers", 2),
    "freq_transformer_depth": ("band_layers", 2),
    "linear_transformer_depth": ("linear_layers", 0),
    "freqs_per_bands": ("bands", BANDS),
    "dim_head": ("head_channels", 64),
    "heads": ("heads", 8),
    "attn_dropout": ("attention_dropout", 0.0),
    "ff_dropout": ("dropout", 0.0),
    "stft_n_fft": ("n_fft", 2048),
    "stft_hop_length": ("hop", 512),
    "stft_win_length": ("window_length", 2048),
    "mask_estimator_depth": ("mask_hidden_layers", 2),
    "mlp_expansion_factor": ("mask_expansion", 4),
    "skip_connection": ("skip_connection", False),
    "zero_dc": ("zero_dc", True),
    "use_torch_checkpoint": ("activation_checkpointing", False),
}
MEL_KEYS: dict[str, tuple[str, Any]] = {  # where Mel-Band RoFormer differs
    "num_bands": ("bands", 60),
    "sample_rate": ("sample_rate", 44100),
    "attn_dropout": ("attention_dropout", 0.1),
    "ff_dropout": ("dropout", 0.1),
    "mask_estimator_depth": ("mask_hidden_layers", 1),
}
#: Of kernels, loss and output length, and a scale that comes off again: no results.
PASSED_OVER = {"flash_attn", "dim_freqs_in", "match_input_audio_length"}
PASSED_OVER |= {"multi_stft_resolution_loss_weight", "multi_stft_hop_size"}
PASSED_OVER |= {"multi_stft_resolutions_window_sizes", "multi_stft_normalized"}
PASSED_OVER |= {"stft_normalized"}


class BSRoFormer(nn.Module):
    """BS-RoFormer: ``mixture_BCT -> estimate_BSCT``, and what `MelRoFormer` shares.

    An estimate scales with its mixture, whatever the level; examples of a batch do not
    see each other. Other values and shapes are a ValueError.

    Arguments
    ---------
    sources : Sequence[str]
        Names of the sources, in the order of the output.
    segment_seconds : float | str
        Length of the pieces that songs are cut into; "131584/44100" is a fraction.
    sample_rate, audio_channels : int
        Of the mixture and of each source.
    bands : Sequence[int] | int | None
        Bins of each band; in MelRoFormer their number. None: as published.
    channels, layers, heads, head_channels : int
        Features D, blocks, attention heads, and features of each, an even number.
    time_layers, band_layers, linear_layers : int
        Layers of a block's transformers: along time, along the bands, and of a first
        one over both at once, with linear attention (0: none).
    n_fft, hop, window_length : int
        Samples of a frame, between two frames, and of the window (0: n_fft).
    mask_hidden_layers, mask_expansion : int
        Hidden layers of the network of a mask, and their features as a multiple of D.
    skip_connection, zero_dc, residual : bool
        Add the outputs of earlier blocks to the input of one; leave out the lowest bin;
        take the mixture minus the other sources for the last one, without a mask.
    attention_dropout, dropout : float
        In attention and in the feed-forward layers, in training only.
    activation_checkpointing : bool
        Compute transformers and masks again in the backward pass, to save memory.

    Example
    -------
    >>> size = {"channels": 8, "layers": 1, "n_fft": 16, "hop": 4, "bands": [4, 5]}
    >>> BSRoFormer(["drums", "rest"], **size)(torch.randn(3, 2, 101)).shape
    torch.Size([3, 2, 2, 101])
    """

    norm_each, keys = False, KEYS  # a norm in the end, not after every transformer

    def __init__(
        self,
        sources: Sequence[str],
        segment_seconds: float | str = 8,
        sample_rate: int = 44100,
        *,
        audio_channels: int = 2,
        bands: int | Sequence[int] | None = None,
        channels: int = 384,
        layers: int = 6,
        time_layers: int = 1,
        band_layers: int = 1,
        linear_layers: int = 0,
        heads: int = 8,
        head_channels: int = 64,
        n_fft: int = 2048,
        hop: int = 441,
        window_length: int = 0,
        mask_hidden_layers: int = 1,
        mask_expansion: int = 4,
        skip_connection: bool = False,
        zero_dc: bool = True,
        residual: bool = False,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        window_length = window_length or n_fft
        for name, fits in {
            "sources": len(sources) > residual,
            "audio_channels": audio_channels > 0,
            "channels": channels > 0,
            "layers": layers > 0,
            "heads": heads > 0,
            "head_channels": head_channels > 0 == head_channels % 2,
            "hop": 0 < 2 * hop <= window_length <= n_fft and n_fft % 2 == 0,
            "mask_hidden_layers": mask_hidden_layers >= 0 < mask_expansion,
            "dropout": 0 <= dropout < 1 and 0 <= attention_dropout < 1,
        }.items():
            if not fits:
                _refuse(self, name, vars()[name])
        self.segment = Fraction(str(segment_seconds))
        self.sources, self.sample_rate = list(sources), sample_rate
        self.audio_channels, self.n_fft, self.hop = audio_channels, n_fft, hop
        #: What leaves no trace in the shapes of the weights.
        self.config = {"n_fft": n_fft, "hop": hop, "zero_dc": zero_dc}
        self.config |= {"skip_connection": skip_connection, "residual": residual}
        self.activation_checkpointing = activation_checkpointing
        bins_K = self._bins(bands, n_fft // 2, sample_rate / n_fft)
        index = [*chain(*bins_K)]
        times = torch.tensor([index.count(number) for number in range(n_fft // 2 + 1)])
        self.index: Any = nn.Buffer(torch.tensor(index), persistent=False)
        self.times_F: Any = nn.Buffer(times, persistent=False)
        around = (n_fft - window_length) // 2, (n_fft - window_length + 1) // 2
        window = F.pad(torch.hann_window(window_length), around)
        self.window: Any = nn.Buffer(window, persistent=False)
        self.widths = widths = [2 * audio_channels * len(bins) for bins in bins_K]
        split = [nn.Sequential(RMSNorm(n), Linear(n, channels)) for n in widths]
        self.band_split: Any = nn.ModuleDict({"to_features": nn.ModuleList(split)})
        sizes = channels, heads, head_channels, attention_dropout, dropout
        self.ropes = Rotary(head_channels), Rotary(head_channels)  # kept by the layers
        kinds: list[Any] = [(linear_layers, None)] * (linear_layers > 0)
        kinds += zip((time_layers, band_layers), self.ropes, strict=True)
        self.layers: Any = nn.ModuleList()
        for _ in range(layers):
            block = [Transformer(*kind, self.norm_each, *sizes) for kind in kinds]
            self.layers.append(nn.ModuleList(block))
        self.final_norm = nn.Identity() if self.norm_each else RMSNorm(channels)
        features = [channels] + [channels * mask_expansion] * mask_hidden_layers
        masks = [MaskEstimator(features, widths) for _ in sources[residual:]]
        self.mask_estimators = nn.ModuleList(masks)

    def _bins(self, bands: Any, last: int, spacing: float) -> list[list[int]]:
        """Return the bins of each band; they lie `spacing` Hz apart."""
        bands = BANDS if bands is None else bands
        known = isinstance(bands, list | tuple) and len(bands) > 0
        if not known or min(bands) < 1 or sum(bands) != last + 1:
            _refuse(self, "bands", bands)
        return [[*range(*ends)] for ends in pairwise(accumulate(bands, initial=0))]

    def forward(self, mixture_BCT: Tensor) -> Tensor:
        """Return ``estimate_BSCT``, as long as the mixtures, of any length T >= 1."""
        batch, *rest = mixture_BCT.shape
        if rest[:-1] != [self.audio_channels] or not rest[-1]:
            wanted = f"[batch, {self.audio_channels} channels, samples >= 1]"
            raise ValueError(f"mixture: expected {wanted}, got {[batch, *rest]}")
        samples, device = rest[-1], mixture_BCT.device.type
        with torch.autocast(device, enabled=False):
            # Reflection needs more samples than it adds.
            short = max(0, self.n_fft // 2 + 1 - samples)
            wave_XT = F.pad(_widen(mixture_BCT), (0, short)).flatten(0, 1)
            framing: Any = {"n_fft": self.n_fft, "hop_length": self.hop}
            framing["window"] = self.window.to(wave_XT.dtype)
            spectrum_XFN = torch.stft(wave_XT, **framing, return_complex=True)
            spectrum_BCFN2 = torch.view_as_real(spectrum_XFN).unflatten(0, (batch, -1))
            spectrum_BNFC2 = spectrum_BCFN2.permute(0, 3, 2, 1, 4)
        mask_BSNFC2 = self.masks(spectrum_BNFC2)
        with torch.autocast(device, enabled=False):
            re, im = spectrum_BNFC2.unsqueeze(1).unbind(-1)
            mask_re, mask_im = mask_BSNFC2.unbind(-1)
            product = re * mask_re - im * mask_im, re * mask_im + im * mask_re
            estimate_BSNFC = torch.complex(*product)
            if self.config["zero_dc"]:
                estimate_BSNFC = F.pad(estimate_BSNFC[..., 1:, :], (0, 0, 1, 0))
            estimate_BSCFN = estimate_BSNFC.permute(0, 1, 4, 3, 2)
            framing["length"] = samples + short
            estimate_XT = torch.istft(estimate_BSCFN.flatten(0, 2), **framing)
        estimate_BSCT = estimate_XT[:, :samples].unflatten(0, estimate_BSCFN.shape[:3])
        parts = [*estimate_BSCT.unbind(1)]
        if self.config["residual"]:
            parts.append(mixture_BCT - sum(parts))
        return torch.stack(parts, dim=1).to(mixture_BCT.dtype)

    def masks(self, spectrum_BNFC2: Tensor) -> Tensor:
        """Return the complex masks of a spectrum, ``[B, S, N, F, C, 2]``."""
        banded = spectrum_BNFC2.index_select(2, self.index).flatten(2)
        layers = self.band_split["to_features"]
        parts = zip(layers, banded.split(self.widths, dim=-1), strict=True)
        x_BNKD = torch.stack([layer(part) for layer, part in parts], dim=2)
        frames, bands = x_BNKD.shape[1:3]
        time_table, band_table = map(Rotary.table, self.ropes, (frames, bands))
        earlier, skips = torch.zeros_like(x_BNKD), self.config["skip_connection"]
        for *linear, along_time, along_bands in self.layers:
            for transformer in linear:
                x_BLD = self._run(transformer, x_BNKD.flatten(1, 2), None)
                x_BNKD = x_BLD.unflatten(1, (frames, bands))
            x_BNKD = x_BNKD + earlier if skips else x_BNKD
            x_XND = x_BNKD.transpose(1, 2).flatten(0, 1)
            x_XND = self._run(along_time, x_XND, time_table)
            x_XKD = x_XND.unflatten(0, (-1, bands)).transpose(1, 2).flatten(0, 1)
            x_XKD = self._run(along_bands, x_XKD, band_table)
            x_BNKD = x_XKD.unflatten(0, (-1, frames))
            earlier = x_BNKD + earlier if skips else earlier
        x_BNKD = self.final_norm(x_BNKD)
        masks = [self._run(estimator, x_BNKD) for estimator in self.mask_estimators]
        mask = _widen(torch.stack(masks, 1)).unflatten(-1, (-1, self.audio_channels, 2))
        if not self.norm_each:
            return mask
        # A bin has at most two bands: the order of the sum does not matter.
        shape = *mask.shape[:3], len(self.times_F), *mask.shape[4:]
        total_BSNFC2 = mask.new_zeros(shape).index_add(3, self.index, mask)
        return total_BSNFC2 / self.times_F[:, None, None]

    def _run(self, module: nn.Module, *given: Any) -> Any:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(module, *given, use_reentrant=False)
        return module(*given)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **arguments: Any) -> Any:
        """Build the network that a configuration of the reference describes.

        It has the keys of the reference's constructor, or these below ``model`` as in
        MSST; ``arguments`` of this class come before them. Sources without names are
        s1, s2... A ValueError is raised for what is unknown here.
        """
        config = config.get("model", config)
        if odd := set(config) - set(cls.keys) - PASSED_OVER:
            raise ValueError(f"{cls.__name__}: unknown {', '.join(sorted(odd))}")
        known = {
            name: config.get(key, default) for key, (name, default) in cls.keys.items()
        }
        known["audio_channels"] = 2 if known["audio_channels"] else 1
        # BS-RoFormer counts linear layers, Mel-Band RoFormer hidden ones.
        known["mask_hidden_layers"] -= not cls.norm_each
        known["sources"] = [f"s{number + 1}" for number in range(known["sources"])]
        return cls(**known | arguments)

    @staticmethod
    def adapt_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give rotary frequencies that were rounded to 16 bits their exact values."""
        rotary = [k for k, v in state.items() if "rotary" in k and v.itemsize == 2]
        return state | {key: _frequencies(2 * len(state[key])) for key in rotary}


class MelRoFormer(BSRoFormer):
    """Mel-Band RoFormer, with the arguments of `BSRoFormer` and 60 bands by default."""

    norm_each = True
    keys = {k: v for k, v in KEYS.items() if k != "freqs_per_bands"} | MEL_KEYS

    def _bins(self, bands: Any, last: int, spacing: float) -> list[list[int]]:
        """Return the bins inside of triangles on Slaney's mel scale."""
        bands = 60 if bands is None else bands
        if not isinstance(bands, int) or bands < 1:
            _refuse(self, "bands", bands)
        # Linear up to 1 kHz or 15 mel, then 27 mel for each factor of 6.4.
        step, kilo = math.log(6.4) / 27, last * spacing / 1000
        top = 15 * kilo if kilo < 1 else 15 + math.log(kilo) / step
        edges = []
        for mel in [top * number / (bands + 1) for number in range(bands + 2)]:
            kilohertz = mel / 15 if mel < 15 else math.exp(step * (mel - 15))
            edges.append(1000 * kilohertz / spacing)
        bins_K = [
            [number for number in range(1, last) if low < number < high]
            for low, high in zip(edges, edges[2:], strict=False)
        ]
        bins_K[0].insert(0, 0)
        bins_K[-1].append(last)
        if not all(bins_K) or len({*chain(*bins_K)}) <= last:
            _refuse(self, "bands", bands)
        return bins_K


class MaskEstimator(nn.Module):
    """Turns the features of each band into the mask of its numbers."""

    def __init__(self, features: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.to_freqs = nn.ModuleList()
        for width in widths:
            network = nn.Sequential()
            for inside, outside in pairwise([*features, 2 * width]):
                network.extend([Linear(inside, outside), nn.Tanh()])
            self.to_freqs.append(nn.Sequential(network[:-1], nn.GLU(dim=-1)))

    def forward(self, x_BNKD: Tensor) -> Tensor:
        parts = zip(self.to_freqs, x_BNKD.unbind(2), strict=True)
        return torch.cat([layer(part) for layer, part in parts], dim=-1)


class Transformer(nn.Module):
    """Layers of attention and feed-forward; `rope` None makes attention linear."""

    def __init__(
        self, depth: int, rope: Any, has_norm: bool, channels: int, *sizes: Any
    ) -> None:
        super().__init__()
        *heads, dropout = sizes
        wide, drop = 4 * channels, nn.Dropout(dropout)
        self.layers: Any = nn.ModuleList()
        for _ in range(depth):
            attention: nn.Module = LinearAttention(channels, *heads)
            if rope is not None:
                attention = Attention(rope, channels, *heads)
            first, last = Linear(channels, wide), Linear(wide, channels)
            net = nn.Sequential(RMSNorm(channels), first, nn.GELU(), drop, last, drop)
            self.layers.append(nn.ModuleList([attention, nn.ModuleDict({"net": net})]))
        self.norm = RMSNorm(channels) if has_norm else nn.Identity()

    def forward(self, x_XLD: Tensor, table: Tensor | None) -> Tensor:
        for attention, feed_forward in self.layers:
            x_XLD = x_XLD + attention(x_XLD, table)
            x_XLD = x_XLD + feed_forward["net"](x_XLD)
        return self.norm(x_XLD)


class Attention(nn.Module):
    """Attention with rotary positions and a gate for each head."""

    def __init__(
        self, rope: "Rotary", channels: int, heads: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm, self.rotary_embed = RMSNorm(channels), rope
        self.heads, self.dropout, inner = heads, dropout, heads * width
        self.to_qkv = Linear(channels, 3 * inner, bias=False)
        self.to_gates = Linear(channels, heads)
        out = Linear(inner, channels, bias=False)
        self.to_out = nn.Sequential(out, nn.Dropout(dropout))

    def forward(self, x_XLD: Tensor, table: Tensor) -> Tensor:
        x_XLD = self.norm(x_XLD)
        qkv_XL3HE = self.to_qkv(x_XLD).unflatten(-1, (3, self.heads, -1))
        both_XL2HE, v_XL1HE = qkv_XL3HE.split((2, 1), dim=2)
        heads = *Rotary.rotate(both_XL2HE, table).unbind(2), v_XL1HE.squeeze(2).clone()
        del qkv_XL3HE, both_XL2HE, v_XL1HE  # not kept: a tenth of the activations
        splits = [x.transpose(1, 2).split(ROWS) for x in heads]
        attend: Any = F.scaled_dot_product_attention
        share = self.dropout if self.training else 0.0
        parts = [attend(*qkv, None, share) for qkv in zip(*splits, strict=True)]
        seen_XHLE = parts[0] if len(parts) == 1 else torch.cat(parts)
        gate_XLH = torch.sigmoid(self.to_gates(x_XLD))
        seen_XLHE = seen_XHLE.transpose(1, 2) * gate_XLH.unsqueeze(-1)
        return self.to_out(seen_XLHE.flatten(2))


class LinearAttention(nn.Module):
    """Attention between the features of a head (arXiv 2106.09681), linear in L."""

    def __init__(self, channels: int, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.norm = RMSNorm(channels)
        self.to_qkv = nn.Sequential(Linear(channels, 3 * heads * width, bias=False))
        out = Linear(heads * width, channels, bias=False)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.to_out = nn.Sequential(nn.Identity(), out)

    def forward(self, x_BLD: Tensor, _: None) -> Tensor:
        qkv_BL3HE = self.to_qkv(self.norm(x_BLD)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv_BL3HE.permute(2, 0, 3, 4, 1)
        q, k = F.normalize(_widen(q), dim=-1), F.normalize(_widen(k), dim=-1)
        score_BHEE = (8 * self.temperature.exp() * q) @ k.mT
        seen_BHEL = self.dropout(score_BHEE.softmax(-1)).to(v.dtype) @ v
        return self.to_out(seen_BHEL.permute(0, 3, 1, 2).flatten(2))


class Rotary(nn.Module):
    """Rotates feature pairs ``(2i, 2i + 1)`` at position ``l`` by ``l f_i``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # A frozen parameter: the published weights carry it in every layer.
        self.freqs = nn.Parameter(_frequencies(width), requires_grad=False)

    def table(self, positions: int) -> Tensor:
        steps = torch.arange(positions, device=self.freqs.device)
        angle = steps.unsqueeze(1) * _widen(self.freqs)
        return torch.polar(torch.ones_like(angle), angle)

    @staticmethod
    def rotate(x_XL2HE: Tensor, table: Tensor) -> Tensor:
        pairs = torch.view_as_complex(_widen(x_XL2HE).unflatten(-1, (-1, 2)))
        rotated = torch.view_as_real(pairs * table[:, None, None])
        return rotated.flatten(-2).to(x_XL2HE.dtype)


class RMSNorm(nn.Module):
    """Divides by the root mean square; float32 or wider."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(_widen(x), self.gamma.shape, self.gamma, eps=1e-24)


class Linear(nn.Linear):
    """Has oneDNN do a large fp32 product on the CPU, twice as fast as MKL on AMD."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        fast = x.device.type == "cpu" and x.dtype == torch.float32
        fast = fast and weight.numel() >= 2**16 and not torch.is_autocast_enabled("cpu")
        if not fast or torch.compiler.is_compiling():
            return F.linear(x, weight, bias)
        image_1C1P = x.flatten(0, -2)[None].mT.unsqueeze(2)
        # A dilation means nothing to one tap, but with it PyTorch always asks oneDNN.
        y_1C1P = F.conv2d(image_1C1P, weight[..., None, None], bias, dilation=2)
        return y_1C1P[0, :, 0].t().unflatten(0, x.shape[:-1])


def _refuse(network: nn.Module, name: str, value: object) -> None:
    kind = type(network).__name__
    raise ValueError(f"{kind}: {name}={value!r} is out of range, or not for the others")


def _frequencies(width: int) -> Tensor:
    """Return ``10000 ** (-2i / width)`` for every pair of features."""
    return 1.0 / 10000 ** (torch.arange(0, width, 2).float() / width)


def _widen(x: Tensor) -> Tensor:
    """Return float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
