"""TF-Locoformer, separation of speech on the spectrogram (Saijo et al., IWAENC 2024).

``mixture_BT -> spectrogram -> blocks -> spectrogram of each source -> estimate_BST``.
A block is a transformer along frequency and one along time; their feed-forward layers
are convolutions. The spectra of the sources come out as they are, there is no mask.

Names of parameters and arithmetic are those of the published weights
(merlresearch/tf-locoformer), also where they differ from the paper: residuals count
whole, and the second of two feed-forward layers is stored first. Here features stay
last, and a convolution along an axis of the spectrogram is one of two dimensions.

Legend of the shape suffixes
    B batch, S source, T sample, N frame, F frequency bin, D feature, X and L the axis
    that attention does not see and the one that it sees, H head, C feature of a head.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ROWS = 2**15  # sequences of a call of attention: CUDA's kernels take less than twice

#: The reference's keys, and the arguments that they are here.
NAMES = {
    "num_spk": "num_sources",
    "n_layers": "layers",
    "emb_dim": "channels",
    "attention_dim": "attention_channels",
    "n_heads": "heads",
    "ffn_hidden_dim": "ffn_channels",
    "conv1d_kernel": "kernel_size",
    "conv1d_shift": "kernel_shift",
    "num_groups": "norm_groups",
    "tf_order": "order",
    "n_fft": "n_fft",
    "hop_length": "hop",
    "normalize_variance": "normalize",
    "dropout": "dropout",
    "eps": "eps",
}
#: The reference's keys with the only value that is known here.
FIXED: dict[str, object] = {
    "norm_type": "rmsgroupnorm",
    "ffn_type": ["swiglu_conv1d", "swiglu_conv1d"],
    "window": "hann",
    "center": True,
    "normalized": False,
    "onesided": True,
    "spec_transform_type": None,
    "normalize_variance_per_ch": False,
    "stft_consistency": False,
}
#: Those that change no result.
PASSED_OVER = {"flash_attention", "use_builtin_complex", "default_fs", "loss_type"}
PASSED_OVER |= {"mask_type", "extract_feats_in_collect_stats", "dynamic_mixing"}
PASSED_OVER |= {"spec_factor", "spec_abs_exponent"}


class TFLocoformer(nn.Module):
    """TF-Locoformer: ``mixture_BT -> estimate_BST``.

    The defaults are size M for WSJ0-2mix (15.0 M parameters); L has 9 layers (22.5 M).
    S for WHAMR! (5.1 M) has 4 layers of 96 channels, with ffn_channels of 128, kernels
    of 8 and n_fft 256. Weights start as the authors' do: Xavier for all but vectors.

    The norm after the first convolution runs over the whole input: the estimate of a
    part is not the part of the estimate, and padding changes it, so batch only equal
    lengths. Other values and shapes are a ValueError.

    Arguments
    ---------
    num_sources, layers : int
        Sources S in the estimate; blocks.
    channels, norm_groups : int
        Features D, and the groups of them that are normalised apart.
    attention_channels, heads : int
        Features of all heads together, and heads; each has an even number of features.
    ffn_channels : tuple[int, int]
        Features inside the feed-forward layers before and after attention.
    kernel_size, kernel_shift : int
        Bins or frames of a filter of the feed-forward layers, and their step.
    order : str
        "ft": frequency comes first in each block; "tf": time does.
    n_fft, hop : int
        Samples of a frame, even, and between two frames, at most half as many.
    normalize, dropout, eps : bool, float, float
        Divide each mixture by its standard deviation, and multiply the estimates;
        dropout in every layer, in training only; what the norms add to a divisor.
    activation_checkpointing : bool
        Keep only the input of each half of a block for the backward pass.

    Example
    -------
    >>> model = TFLocoformer(layers=1, channels=8, ffn_channels=(8, 8), n_fft=32, hop=8)
    >>> model(torch.randn(2, 101)).shape
    torch.Size([2, 2, 101])
    """

    def __init__(
        self,
        num_sources: int = 2,
        layers: int = 6,
        channels: int = 128,
        attention_channels: int = 128,
        heads: int = 4,
        ffn_channels: tuple[int, int] = (384, 384),
        kernel_size: int = 4,
        kernel_shift: int = 1,
        norm_groups: int = 4,
        order: str = "ft",
        n_fft: int = 128,
        hop: int = 64,
        normalize: bool = True,
        dropout: float = 0.0,
        eps: float = 1e-5,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        counts = {
            "num_sources": (num_sources, 1),
            "layers": (layers, 1),
            "norm_groups": (norm_groups, 1),
            "channels": (channels, norm_groups),
            "heads": (heads, 1),
            "attention_channels": (attention_channels, 2 * heads),
            "kernel_size": (kernel_size, 1),
            "kernel_shift": (kernel_shift, 1),
            "n_fft": (n_fft, 2),
            "hop": (hop, 1),
        }
        for name, (value, multiple) in counts.items():
            if not isinstance(value, int) or value < 1 or value % multiple:
                raise ValueError(
                    f"TFLocoformer: {name}={value!r} must be a whole number above 0 "
                    f"and a multiple of {multiple}"
                )
        pair = isinstance(ffn_channels, list | tuple) and len(ffn_channels) == 2
        if not pair or not all(isinstance(n, int) and n > 0 for n in ffn_channels):
            raise ValueError(
                f"TFLocoformer: ffn_channels={ffn_channels!r} must be two whole "
                "numbers above 0, before and after attention"
            )
        if kernel_shift > kernel_size or 2 * hop > n_fft:
            raise ValueError(
                f"TFLocoformer: kernel_shift={kernel_shift} must be at most "
                f"kernel_size={kernel_size}, and hop={hop} half of n_fft={n_fft}"
            )
        if order not in ("ft", "tf"):
            raise ValueError(f"TFLocoformer: order={order!r}: use 'ft' or 'tf'")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"TFLocoformer: dropout={dropout!r} must be in [0, 1)")
        self.num_sources, self.n_fft, self.hop = num_sources, n_fft, hop
        self.order, self.normalize = order, normalize
        self.activation_checkpointing = activation_checkpointing
        #: Arguments that leave no trace in the shapes of the weights.
        self.config: dict[str, object] = {"norm_groups": norm_groups}
        self.config |= {"kernel_shift": kernel_shift, "order": order, "n_fft": n_fft}
        self.config |= {"hop": hop, "normalize": normalize, "eps": eps}

        first = nn.Conv2d(2, channels, 3, padding=1)
        self.conv = nn.Sequential(first, nn.GroupNorm(1, channels, eps=eps))
        ropes = [Rotary(attention_channels // heads) for _ in ("freq", "frame")]
        self.blocks: Any = nn.ModuleList()
        for _ in range(layers):
            block = nn.ModuleDict()
            for name, rope in zip(("freq_path", "frame_path"), ropes, strict=True):
                norms = [RMSGroupNorm(channels, norm_groups, eps) for _ in range(3)]
                block[name] = Path(
                    norms[0],
                    Attention(channels, attention_channels, heads, rope, dropout),
                    norms[1:],
                    [
                        ConvSwiGLU(channels, hidden, kernel_size, kernel_shift, dropout)
                        for hidden in reversed(ffn_channels)
                    ],
                )
            self.blocks.append(block)
        self.deconv = nn.ConvTranspose2d(channels, 2 * num_sources, 3, padding=1)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)

    def forward(self, mixture_BT: Tensor) -> Tensor:
        """Return ``estimate_BST``, as long as the mixtures, of one length T >= 1."""
        if mixture_BT.dim() != 2 or mixture_BT.shape[-1] == 0:
            raise ValueError(
                "TFLocoformer: the mixture must have shape [batch, samples >= 1], "
                f"not {list(mixture_BT.shape)}"
            )
        samples, device = mixture_BT.shape[-1], mixture_BT.device.type
        with torch.autocast(device, enabled=False):
            wave_BT, scale_B1 = _widen(mixture_BT), None
            if self.normalize:
                scale_B1 = wave_BT.std(-1, correction=min(1, samples - 1), keepdim=True)
                # A constant mixture has no level.
                tiny = torch.finfo(wave_BT.dtype).tiny
                scale_B1 = torch.where(scale_B1 > tiny, scale_B1, 1.0)
                wave_BT = wave_BT / scale_B1
            # Reflection needs more samples than it adds.
            wave_BT = F.pad(wave_BT, (0, max(0, self.n_fft // 2 + 1 - samples)))
            window = self.window.to(wave_BT.dtype)
            framing: dict[str, Any] = {
                "n_fft": self.n_fft,
                "hop_length": self.hop,
                "window": window,
            }
            mixture_BFN = torch.stft(wave_BT, **framing, return_complex=True)
        estimate_BSNF = self.separate(mixture_BFN.transpose(1, 2))
        with torch.autocast(device, enabled=False):
            estimate_XFN = estimate_BSNF.flatten(0, 1).transpose(1, 2)
            estimate_XT = torch.istft(estimate_XFN, **framing, length=wave_BT.shape[-1])
            estimate_BST = estimate_XT[:, :samples].unflatten(0, (-1, self.num_sources))
            if scale_B1 is not None:
                estimate_BST = estimate_BST * scale_B1.unsqueeze(1)
        return estimate_BST.to(mixture_BT.dtype)

    def separate(self, mixture_BNF: Tensor) -> Tensor:
        """Map a complex spectrogram ``[B, N, F]`` to those of the sources."""
        parts_BNF2 = torch.view_as_real(mixture_BNF)
        x_BDNF = self.conv(parts_BNF2.permute(0, 3, 1, 2))
        # The axis of a path lies next to the features, where convolutions are fast.
        axes, back = (0, 2, 3, 1), (0, 3, 1, 2)
        paths = ["freq_path", "frame_path"]
        if self.order == "tf":
            axes, back = (0, 3, 2, 1), (0, 3, 2, 1)
            paths.reverse()
        x_BXLD = x_BDNF.permute(axes)
        sizes = x_BXLD.shape[2], x_BXLD.shape[1]
        tables = [
            self.blocks[0][name].attn.rope.table(size)
            for name, size in zip(paths, sizes, strict=True)
        ]
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            for name, table in zip(paths, tables, strict=True):
                given = x_BXLD, table
                if recompute:
                    x_BXLD = checkpoint(block[name], *given, use_reentrant=False)
                else:
                    x_BXLD = block[name](*given)
                x_BXLD = x_BXLD.transpose(1, 2)
        estimate_BZNF = _widen(self.deconv(x_BXLD.permute(back)))
        estimate_BS2NF = estimate_BZNF.unflatten(1, (self.num_sources, 2))
        return torch.complex(estimate_BS2NF[:, :, 0], estimate_BS2NF[:, :, 1])

    @staticmethod
    def from_config(config: Mapping[str, Any], **arguments: Any) -> "TFLocoformer":
        """Build the network that a configuration of the reference describes.

        ``config`` has the separator's keys with ``n_fft``, ``hop_length`` and
        ``normalize_variance``; or it is all of ESPnet's ``config.yaml``, of which the
        separator, encoder, decoder and model are read. ``arguments`` of this class come
        before it. A ValueError is raised for what is unknown here.

        Example
        -------
        >>> len(TFLocoformer.from_config({"n_layers": 1, "emb_dim": 16}).blocks)
        1
        """
        if "separator_conf" in config:
            config = _flattened(config)
        unknown = set(config) - set(NAMES) - set(FIXED) - PASSED_OVER
        if unknown:
            raise ValueError(f"TFLocoformer: unknown keys {', '.join(sorted(unknown))}")
        for key, value in FIXED.items():
            if config.get(key, value) != value:
                raise ValueError(
                    f"TFLocoformer: {key}={config[key]!r}: only {value!r} is known here"
                )
        known = {NAMES[key]: value for key, value in config.items() if key in NAMES}
        return TFLocoformer(**known | arguments)

    @staticmethod
    def adapt_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Drop the prefix of ESPnet's files, and refuse foreign rotary frequencies."""
        adapted = {
            key.removeprefix("separator."): value for key, value in state.items()
        }
        for key, value in adapted.items():
            ours = _frequencies(2 * value.numel())
            is_rotary = key.endswith("rope.freqs")
            if is_rotary and not torch.allclose(value.float().cpu(), ours, rtol=1e-4):
                raise ValueError(
                    f"TFLocoformer: {key} holds other frequencies than "
                    "10000 ** (-2i / width): this is not a TF-Locoformer state"
                )
        return adapted


class Path(nn.Module):
    """Transformer layer along one axis: feed-forward, attention, feed-forward."""

    def __init__(
        self,
        attn_norm: nn.Module,
        attn: "Attention",
        ffn_norm: list["RMSGroupNorm"],
        ffn: list["ConvSwiGLU"],
    ) -> None:
        super().__init__()
        self.ffn_norm: Any = nn.ModuleList(ffn_norm)
        self.ffn: Any = nn.ModuleList(ffn)
        self.attn_norm, self.attn = attn_norm, attn

    def forward(self, x_BXLD: Tensor, table: Tensor) -> Tensor:
        x_BXLD = x_BXLD.contiguous()
        x_BXLD = x_BXLD + self.ffn[1](self.ffn_norm[1](x_BXLD))
        x_BXLD = x_BXLD + self.attn(self.attn_norm(x_BXLD), table)
        return x_BXLD + self.ffn[0](self.ffn_norm[0](x_BXLD))


class ConvSwiGLU(nn.Module):
    """Feed-forward layer of convolutions along one axis, with gated units inside."""

    def __init__(
        self, channels: int, hidden: int, kernel: int, shift: int, dropout: float
    ) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(channels, 2 * hidden, kernel, shift)
        self.deconv1d = nn.ConvTranspose1d(hidden, channels, kernel, shift)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BXLD: Tensor) -> Tensor:
        (kernel,), (shift,) = self.conv1d.kernel_size, self.conv1d.stride
        size, reach = x_BXLD.shape[2], kernel - shift
        missing = -(size + 2 * reach - kernel) % shift  # until the filters fit
        x_BDXL = F.pad(x_BXLD, (0, 0, 0, missing)).permute(0, 3, 1, 2)
        weight, bias = self.conv1d.weight.unsqueeze(2), self.conv1d.bias
        both = F.conv2d(x_BDXL, weight, bias, (1, shift), (0, reach))
        value, gate = both.chunk(2, dim=1)
        hidden = self.dropout(value * F.silu(gate))
        weight, bias = self.deconv1d.weight.unsqueeze(2), self.deconv1d.bias
        y_BDXL = F.conv_transpose2d(hidden, weight, bias, (1, shift), (0, reach))
        return self.dropout(y_BDXL.permute(0, 2, 3, 1)[:, :, :size])


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions."""

    def __init__(
        self, channels: int, width: int, heads: int, rope: "Rotary", dropout: float
    ) -> None:
        super().__init__()
        self.rope, self.heads = rope, heads
        self.qkv = nn.Linear(channels, 3 * width, bias=False)
        out = nn.Linear(width, channels, bias=False)
        self.aggregate_heads = nn.Sequential(out, nn.Dropout(dropout))

    def forward(self, x_BXLD: Tensor, table: Tensor) -> Tensor:
        """Attend along L; return ``[B, X, L, D]``."""
        qkv_BXL3HC = self.qkv(x_BXLD).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(2, 3) for part in qkv_BXL3HC.unbind(3))
        q, k = Rotary.rotate(q, table), Rotary.rotate(k, table)
        heads: Any = [part.flatten(0, 1) for part in (q, k, v)]
        if len(heads[0]) <= ROWS:
            seen = F.scaled_dot_product_attention(*heads)
        else:
            pieces = zip(*(part.split(ROWS) for part in heads), strict=True)
            parts = [F.scaled_dot_product_attention(*piece) for piece in pieces]
            seen = torch.cat(parts)
        seen_BXLD = seen.transpose(1, 2).flatten(2).unflatten(0, x_BXLD.shape[:2])
        return self.aggregate_heads(seen_BXLD)


class Rotary(nn.Module):
    """Rotate feature pairs ``(2i, 2i + 1)`` at position ``l`` by ``l f_i``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # A frozen parameter: the published weights carry it in every layer.
        self.freqs = nn.Parameter(_frequencies(width), requires_grad=False)

    def table(self, positions: int) -> Tensor:
        """Return the complex factors ``[positions, C / 2]``."""
        steps = torch.arange(positions, device=self.freqs.device)
        angle = steps.unsqueeze(1) * _widen(self.freqs)
        return torch.polar(torch.ones_like(angle), angle)

    @staticmethod
    def rotate(x: Tensor, table: Tensor) -> Tensor:
        """Rotate ``[..., L, C]``."""
        pairs = torch.view_as_complex(_widen(x).unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)


class RMSGroupNorm(nn.Module):
    """Divide each group of features by its root mean square; float32 or wider."""

    def __init__(self, channels: int, groups: int, eps: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.groups, self.eps = groups, eps

    def forward(self, x_BNFD: Tensor) -> Tensor:
        """Return ``[B, N, F, D]``."""
        groups = _widen(x_BNFD).unflatten(-1, (self.groups, -1))
        # This norm has a gradient at zero, the root of a mean has none.
        norm = torch.linalg.vector_norm(groups, dim=-1, keepdim=True)
        rms = norm * groups.shape[-1] ** -0.5
        return (groups / (rms + self.eps)).flatten(-2) * self.gamma


def _frequencies(width: int) -> Tensor:
    """Return ``10000 ** (-2i / width)`` for every pair of features."""
    return 1.0 / 10000 ** (torch.arange(0, width, 2).float() / width)


def _widen(x: Tensor) -> Tensor:
    """Return float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of ESPnet's sections in one; the others are of the training."""
    kinds = {"encoder": "stft", "separator": "tflocoformer", "decoder": "stft"}
    for part, kind in kinds.items():
        if config.get(part, kind) != kind:
            raise ValueError(f"TFLocoformer: {part}={config[part]!r} must be {kind!r}")
    flat: dict[str, Any] = {"normalize_variance": False}  # what ESPnet takes
    for part in ("model", "decoder", "encoder", "separator"):
        for key, value in (config.get(f"{part}_conf") or {}).items():
            if key == "win_length":  # null: that of the transform
                key, value = "n_fft", value or config["encoder_conf"]["n_fft"]
            if flat.get(key, value) != value and key != "normalize_variance":
                raise ValueError(f"TFLocoformer: {key} is both {flat[key]} and {value}")
            flat[key] = value
    return flat
