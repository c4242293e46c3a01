"""MossFormer2, a time-domain speech separation network (arXiv 2312.11825).

``mixture_BT -> encoder -> mask network -> decoder -> estimate_BST``. The mask
network is a stack of layers, each a gated single-head attention over groups of 256
frames (plus linear attention over all of them) and a gated memory block of
depthwise convolutions (FSMN).

Every module keeps the parameter names and the arithmetic of the published weights
(ClearerVoice-Studio), also where these differ from the paper; such places say so.

Legend of the shape suffixes
    B batch, S source, T sample, N feature, L frame, G group of frames,
    C channel of an inner layer, K tap of a convolution kernel.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

GROUP = 256  # frames that see each other in the quadratic attention
QUERY_KEY = 128  # width of queries and keys
ROTARY = 32  # leading query/key features that are rotated
TAPS = 17  # depthwise kernel of the feed-forward convolutions
MEMORY_TAPS = 39  # depthwise kernel of the memory block: 19 frames each side


# ---------------------------------------------------------------- operations


def _fast_form(x: Tensor) -> bool:
    """Return whether ``x`` takes the form of an operation that is written for the CPU.

    The only place that chooses by device. PyTorch dispatches depthwise convolutions
    badly on the CPU (one of 17 taps on 2048 channels: 150 ms instead of 6).
    benchmarks/RESULTS.md says what each form gains.
    """
    return x.device.type == "cpu"


def depthwise(x_BLC: Tensor, weight_CK: Tensor, skip: bool = False) -> Tensor:
    """Convolve each channel with its own odd kernel, "same" padding, no bias.

    ``y[l, c] = sum_k weight[c, k] x[l + k - K // 2, c]``, plus ``x[l, c]`` with skip.

    Example
    -------
    >>> depthwise(torch.ones(1, 3, 1), torch.ones(1, 3)).flatten()
    tensor([2., 3., 2.])
    """
    channels, taps = weight_CK.shape
    if _fast_form(x_BLC):
        if skip:  # one more unit in the middle tap
            centre_K = torch.zeros_like(weight_CK[0])
            centre_K[taps // 2] = 1.0
            weight_CK = weight_CK + centre_K
        return _Depthwise.apply(x_BLC, weight_CK)
    y_BCL = F.conv1d(
        x_BLC.transpose(1, 2), weight_CK[:, None], padding=taps // 2, groups=channels
    )
    y_BLC = y_BCL.transpose(1, 2)
    return x_BLC + y_BLC if skip else y_BLC


def paired_depthwise(x_BLC: Tensor, y_BLC: Tensor, weight_C2K: Tensor) -> Tensor:
    """Filter neighbouring channels of ``[x, y]`` in pairs, with dilation 2.

    Output channel ``c`` reads channels ``2c`` and ``2c + 1`` of the concatenation,
    so the lower half sees only ``x`` and the upper half only ``y``. The paper means
    channel ``c`` of both; the published weights were trained with this order.
    """
    channels, _, taps = weight_C2K.shape
    if not _fast_form(x_BLC):
        both_BCL = torch.cat([x_BLC, y_BLC], dim=-1).transpose(1, 2)
        z_BCL = F.conv1d(
            both_BCL, weight_C2K, padding=taps - 1, dilation=2, groups=channels
        )
        return z_BCL.transpose(1, 2)
    sums = []
    for part_BLC, kernel_C2K in zip(
        (x_BLC, y_BLC), weight_C2K.split(channels // 2), strict=True
    ):
        # Even and odd frames do not meet under dilation 2: as twice the channels at
        # half the rate they need no dilated kernel, and the view costs nothing.
        frames = part_BLC.shape[1]
        part_BLC = F.pad(part_BLC, (0, 0, 0, frames % 2))
        folded_BLC = part_BLC.reshape(part_BLC.shape[0], -1, 2 * part_BLC.shape[2])
        kernel_CK = kernel_C2K.flatten(0, 1).repeat(2, 1)
        out_BLC = depthwise(folded_BLC, kernel_CK).reshape(part_BLC.shape)[:, :frames]
        sums.append(out_BLC[..., 0::2] + out_BLC[..., 1::2])
    return torch.cat(sums, dim=-1)


def gated_attention(hidden_BLC: Tensor, heads_BLHD: Tensor, dropout: float) -> Tensor:
    """Attend within groups of frames and over all of them, then gate.

    With ``[v, u] = hidden``, n frames and A block-diagonal, one block a group:
    ``[a_v, a_u] = (A + q_lin k_lin^T / n) [v, u]``, ``A = relu(q k^T / GROUP)^2``;
    returns ``(a_u * v) * sigmoid(a_v * u)``.

    Arguments
    ---------
    hidden_BLC : Tensor
        Values ``v`` and gates ``u`` side by side.
    heads_BLHD : Tensor
        ``q, q_lin, k, k_lin`` along H.
    dropout : float
        Probability of dropping an entry of A, 0 outside training.

    Returns
    -------
    Tensor
        ``out_BLC`` with half the channels of ``hidden``.
    """
    q_BLD, lin_q_BLD, k_BLD, lin_k_BLD = heads_BLHD.to(hidden_BLC.dtype).unbind(2)
    summary_BDC = _bmm(lin_k_BLD.mT, hidden_BLC) / hidden_BLC.shape[1]
    far_BLC = _bmm(lin_q_BLD, summary_BDC)
    parts = []
    for start, stop, size in _groups(hidden_BLC.shape[1]):
        q, k, hidden, far = (
            x[:, start:stop].reshape(-1, size, x.shape[-1])
            for x in (q_BLD / GROUP, k_BLD, hidden_BLC, far_BLC)
        )
        weights = F.dropout(F.relu(torch.bmm(q, k.mT)).square(), dropout)
        seen = _bmm(weights, hidden, far)
        parts.append(seen.view(-1, stop - start, seen.shape[-1]))
    v, u = hidden_BLC.chunk(2, dim=-1)
    seen_v, seen_u = torch.cat(parts, dim=1).chunk(2, dim=-1)
    return torch.sigmoid(seen_v * u) * seen_u * v


def _groups(frames: int) -> list[tuple[int, int, int]]:
    """Split frames into whole groups and a shorter last one: (start, stop, size).

    The last group is computed alone, so that nothing needs padding or masking.
    """
    whole = frames - frames % GROUP
    groups = [(0, whole, GROUP), (whole, frames, frames - whole)]
    return [group for group in groups if group[1] > group[0]]


class _Depthwise(torch.autograd.Function):
    """`depthwise` for the CPU; PyTorch's own backward of this form takes 1 s."""

    @staticmethod
    def forward(ctx: Any, x_BLC: Tensor, weight_CK: Tensor) -> Tensor:
        ctx.save_for_backward(x_BLC, weight_CK)
        return _convolve_last(x_BLC.contiguous(), weight_CK)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BLC: Tensor) -> tuple[Tensor, Tensor]:
        x_BLC, weight_CK = ctx.saved_tensors
        grad_BLC = grad_BLC.contiguous()
        grad_x_BLC = _convolve_last(grad_BLC, weight_CK.flip(1))
        grad_w_CK = _correlate(x_BLC, grad_BLC, weight_CK.shape[1])
        return grad_x_BLC, grad_w_CK.to(weight_CK.dtype)


def _convolve_last(x_BLC: Tensor, weight_CK: Tensor) -> Tensor:
    """Convolve channels-last frames: a (1, K) image convolution needs no copy."""
    channels, taps = weight_CK.shape
    if channels < 32 and x_BLC.dtype == torch.bfloat16:
        # oneDNN (torch 2.14, AVX512) never returns from 16 channels with 17 taps.
        with torch.autocast(x_BLC.device.type, enabled=False):
            return _convolve_last(x_BLC.float(), weight_CK).to(x_BLC.dtype)
    image_BC1L = x_BLC.transpose(1, 2).unsqueeze(2)
    kernel = weight_CK.to(x_BLC.dtype).view(channels, 1, 1, taps)
    y_BC1L = F.conv2d(image_BC1L, kernel, padding=(0, taps // 2), groups=channels)
    return y_BC1L.squeeze(2).transpose(1, 2)


def _correlate(x_BLC: Tensor, grad_BLC: Tensor, taps: int) -> Tensor:
    """Return a depthwise kernel's gradient, ``sum_l grad[l, c] x[l + k - K//2, c]``.

    Blocks of frames are multiplied with all K shifted views of the input at once,
    into an accumulator small enough for the cache.
    """
    batch, frames, channels = x_BLC.shape
    block = 16
    wide = torch.promote_types(x_BLC.dtype, torch.float)
    padded_BLC = F.pad(x_BLC, (0, 0, taps // 2, taps // 2))
    total_BKLC = grad_BLC.new_zeros(batch, taps, block, channels, dtype=wide)
    for start in range(0, frames, block):
        grad = grad_BLC[:, None, start : start + block].to(wide)
        width = grad.shape[2]
        near_BLC = padded_BLC[:, start : start + width + taps - 1].to(wide)
        shifted_BKLC = near_BLC.unfold(1, width, 1).transpose(2, 3)
        total_BKLC[:, :, :width].addcmul_(shifted_BKLC, grad)
    return total_BKLC.sum((0, 2)).t()


# ---------------------------------------------------------------- normalisations


class ScaleNorm(nn.Module):
    """Divide each frame by its root mean square: ``x / max(rms(x), 1e-5) * g``."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1))

    def forward(self, x_BLC: Tensor) -> Tensor:
        # vector_norm, unlike sqrt(sum), has a finite gradient for an all-zero frame.
        norm_BL1 = torch.linalg.vector_norm(x_BLC.float(), dim=-1, keepdim=True)
        rms_BL1 = norm_BL1 * x_BLC.shape[-1] ** -0.5
        return x_BLC * (self.g / rms_BL1.clamp(min=1e-5))


class MomentNorm(nn.Module):
    """Normalise to zero mean and unit variance over the given dimensions.

    ``(x - mean) / sqrt(var + eps) * weight + bias``, moments in float32 or wider.
    Over frames and features it is GroupNorm(1, C), over frames InstanceNorm.
    """

    def __init__(self, shape: tuple[int, ...], dims: tuple[int, ...], eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))
        self.dims, self.eps = dims, eps

    def forward(self, x_BLC: Tensor) -> Tensor:
        x_BLC = _widen(x_BLC)
        centred_BLC = x_BLC - x_BLC.mean(self.dims, keepdim=True)
        variance = centred_BLC.square().mean(self.dims, keepdim=True)
        scale = torch.rsqrt(variance + self.eps) * self.weight.flatten()
        return torch.addcmul(self.bias.flatten(), centred_BLC, scale)


def global_norm(kind: str, channels: int) -> nn.Module:
    """Return the norm around the layer stack; its name fixes the weight's shape."""
    if kind == "ln":
        return MomentNorm((channels,), (1, 2), 1e-8)
    if kind == "gln":
        return MomentNorm((channels, 1), (1, 2), 1e-8)
    if kind == "cln":
        return nn.LayerNorm(channels, eps=1e-8)
    raise ValueError(f"MossFormer2: norm={kind!r} is unknown: use 'ln', 'gln' or 'cln'")


def _widen(x: Tensor) -> Tensor:
    """Bring half precision to float32 and leave wider types alone."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _goes_to_onednn(*matrices: Tensor) -> bool:
    """Return whether to have oneDNN multiply: twice as fast as MKL on an AMD CPU."""
    return (
        not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and all(_fast_form(x) and x.dtype == torch.float32 for x in matrices)
        and all(x.numel() >= 2**16 for x in matrices)
    )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a matrix."""
    if not _goes_to_onednn(x, weight):
        return F.linear(x, weight, bias)
    image_1C1P = x.flatten(0, -2)[None].mT.unsqueeze(2)
    # A dilation means nothing to one tap, but with it PyTorch always asks oneDNN.
    y_1C1P = F.conv2d(image_1C1P, weight[..., None, None], bias, dilation=2)
    return y_1C1P[0, :, 0].t().unflatten(0, x.shape[:-1])


def _bmm(x_XPL: Tensor, y_XLC: Tensor, add_XPC: Tensor | None = None) -> Tensor:
    """Multiply matrices in pairs, and add."""
    if not _goes_to_onednn(x_XPL[0], y_XLC[0]):
        if add_XPC is None:
            return torch.bmm(x_XPL, y_XLC)
        return torch.baddbmm(add_XPC, x_XPL, y_XLC)
    pairs = zip(x_XPL, y_XLC, strict=True)
    if x_XPL.shape[1] < y_XLC.shape[2]:  # the smaller one as the weight, laid out anew
        products = [_linear(y_LC.mT, x_PL).mT for x_PL, y_LC in pairs]
    else:
        products = [_linear(x_PL, y_LC.mT) for x_PL, y_LC in pairs]
    if add_XPC is not None:
        products = [p + a for p, a in zip(products, add_XPC, strict=True)]
    return products[0][None] if len(products) == 1 else torch.stack(products)


def _pointwise(conv: nn.Conv1d, x_BLC: Tensor) -> Tensor:
    """Apply a 1x1 convolution to channels-last frames, as the matrix it is."""
    return _linear(x_BLC, conv.weight.squeeze(-1), conv.bias)


# ---------------------------------------------------------------- positions


class SinusoidalPosition(nn.Module):
    """Absolute positions ``scale * [sin(l f_i), cos(l f_i)]``, one learnt scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.inv_freq: Tensor
        self.register_buffer("inv_freq", _frequencies(channels))

    def forward(self, frames: int) -> Tensor:
        """Return the positions of ``frames`` frames, ``[frames, channels]``."""
        angle = _angles(self.inv_freq, frames)
        return torch.cat([angle.sin(), angle.cos()], dim=-1) * self.scale


class Rotary(nn.Module):
    """Rotate feature pairs ``(2i, 2i + 1)`` of frame ``l`` by the angle ``l f_i``."""

    def __init__(self) -> None:
        super().__init__()
        # A frozen parameter: the published weights carry it in every layer.
        self.freqs = nn.Parameter(_frequencies(ROTARY), requires_grad=False)

    def table(self, frames: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines ``[frames, 1, ROTARY // 2]`` for `rotate`."""
        angle = _angles(self.freqs, frames).unsqueeze(1)
        return angle.cos(), angle.sin()

    @staticmethod
    def rotate(x_BLHC: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate the leading ROTARY features of ``x_BLHC`` (H heads)."""
        cos, sin = table
        even, odd = x_BLHC[..., 0:ROTARY:2], x_BLHC[..., 1:ROTARY:2]
        pairs = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
        return torch.cat([pairs.flatten(-2), x_BLHC[..., ROTARY:]], dim=-1)


def _frequencies(channels: int) -> Tensor:
    """Return ``10000 ** (-2i / channels)`` for every pair of channels."""
    return 1.0 / 10000 ** (torch.arange(0, channels, 2).float() / channels)


def _angles(frequencies: Tensor, frames: int) -> Tensor:
    """Return ``l f_i``; never in half precision, which cannot count to 4000."""
    frequencies = _widen(frequencies)
    steps = torch.arange(frames, device=frequencies.device, dtype=frequencies.dtype)
    return torch.outer(steps, frequencies)


# ---------------------------------------------------------------- the two blocks


class FeedForwardConv(nn.Module):
    """Project and look around: ``dropout(s + depthwise(s))``, ``s = silu(W norm(x))``.

    ``mdl`` only holds the parameters under their published names.
    """

    def __init__(self, norm: nn.Module, inputs: int, outputs: int, dropout: float):
        super().__init__()
        conv = nn.Conv1d(outputs, outputs, TAPS, groups=outputs, bias=False)
        depthwise_conv = nn.Module()
        depthwise_conv.sequential = nn.Sequential(
            nn.Identity(), nn.ModuleDict({"conv": conv})
        )
        self.mdl: Any = nn.Sequential(
            norm, nn.Linear(inputs, outputs), nn.SiLU(), depthwise_conv
        )
        self.dropout = dropout

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Map ``[B, L, inputs]`` to ``[B, L, outputs]``."""
        norm, linear, _, depthwise_conv = self.mdl
        weight_CK = depthwise_conv.sequential[1]["conv"].weight.squeeze(1)
        y_BLC = F.silu(_linear(norm(x_BLC), linear.weight, linear.bias))
        y_BLC = depthwise(y_BLC, weight_CK, skip=True)
        return F.dropout(y_BLC, self.dropout, self.training)


class OffsetScale(nn.Module):
    """Give four cheap variants of one projection: ``x * gamma_h + beta_h``."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(4, QUERY_KEY).normal_(std=0.02))
        self.beta = nn.Parameter(torch.zeros(4, QUERY_KEY))

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Return ``[B, L, 4, C]``."""
        return torch.addcmul(self.beta, x_BLC.unsqueeze(2), self.gamma)


class GatedAttention(nn.Module):
    """Gated single-head attention with shared weights for values and gates."""

    def __init__(self, channels: int, dropout: float, rotary: Rotary) -> None:
        super().__init__()
        self.to_hidden = FeedForwardConv(ScaleNorm(), channels, 4 * channels, dropout)
        self.to_qk = FeedForwardConv(ScaleNorm(), channels, QUERY_KEY, dropout)
        self.qk_offset_scale = OffsetScale()
        self.rotary_pos_emb = rotary
        self.to_out = FeedForwardConv(ScaleNorm(), 2 * channels, channels, dropout)
        self.dropout = dropout

    def forward(self, x_BLN: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """Return ``x + to_out(attention(x))``, ``[B, L, N]``."""
        # Token shift: half of the features come from the frame before.
        late, now = x_BLN.chunk(2, dim=-1)
        shifted_BLN = torch.cat([F.pad(late, (0, 0, 1, -1)), now], dim=-1)
        hidden_BLC = self.to_hidden(shifted_BLN)
        heads_BLHC = self.qk_offset_scale(self.to_qk(shifted_BLN))
        heads_BLHC = Rotary.rotate(heads_BLHC, table)
        dropout = self.dropout if self.training else 0.0
        return x_BLN + self.to_out(gated_attention(hidden_BLC, heads_BLHC, dropout))


class DenseMemory(nn.Module):
    """Two densely connected filters over time, the second with dilation 2.

    ``m1 = prelu(norm(conv1(x)))``, ``m2 = prelu(norm(conv2([m1, x])))``.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        shape = (MEMORY_TAPS, 1)
        self.conv1 = nn.Conv2d(width, width, shape, groups=width, bias=False)
        self.conv2 = nn.Conv2d(2 * width, width, shape, groups=width, bias=False)
        self.norm1 = MomentNorm((width,), (1,), 1e-5)
        self.norm2 = MomentNorm((width,), (1,), 1e-5)
        self.prelu1 = nn.PReLU(width)
        self.prelu2 = nn.PReLU(width)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Return ``m2``, ``[B, L, C]``."""
        near_BLC = depthwise(x_BLC, self.conv1.weight[:, 0, :, 0])
        near_BLC = self._activate(self.prelu1, self.norm1(near_BLC)).to(x_BLC.dtype)
        far_BLC = paired_depthwise(near_BLC, x_BLC, self.conv2.weight[..., 0])
        return self._activate(self.prelu2, self.norm2(far_BLC))

    @staticmethod
    def _activate(prelu: nn.PReLU, x_BLC: Tensor) -> Tensor:
        """Apply a PReLU with one slope per channel, channels last."""
        return prelu(x_BLC.flatten(0, 1)).view_as(x_BLC)


class FSMN(nn.Module):
    """Feed-forward sequential memory: ``z + memory(W2 relu(W1 z))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.project = nn.Linear(width, width, bias=False)
        self.conv = DenseMemory(width)

    def forward(self, z_BLC: Tensor) -> Tensor:
        """Return ``[B, L, C]``."""
        # The paper draws a PReLU here; the published weights know a ReLU.
        return z_BLC + self.conv(self.project(F.relu(self.linear(z_BLC))))


class GatedFSMN(nn.Module):
    """A memory gated by a second branch: ``v(x) * fsmn(u(x)) + x``."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.to_u = FeedForwardConv(nn.LayerNorm(width), width, width, dropout)
        self.to_v = FeedForwardConv(nn.LayerNorm(width), width, width, dropout)
        self.fsmn = FSMN(width)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Return ``[B, L, C]``."""
        return torch.addcmul(x_BLC, self.to_v(x_BLC), self.fsmn(self.to_u(x_BLC)))


class MemoryBlock(nn.Module):
    """A memory in a bottleneck: ``x + W2 norm(gated_fsmn(norm(W1 x)))``."""

    def __init__(self, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.conv1: Any = nn.Sequential(nn.Conv1d(channels, width, 1), nn.PReLU())
        self.norm1 = nn.LayerNorm(width)
        self.gated_fsmn = GatedFSMN(width, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.conv2 = nn.Conv1d(width, channels, 1)

    def forward(self, x_BLN: Tensor) -> Tensor:
        """Return ``[B, L, N]``."""
        narrow_BLC = self.conv1[1](_pointwise(self.conv1[0], x_BLN))
        narrow_BLC = self.norm2(self.gated_fsmn(self.norm1(narrow_BLC)))
        return x_BLN + _pointwise(self.conv2, narrow_BLC)


# ---------------------------------------------------------------- the network


class Layers(nn.Module):
    """The stack: attention, memory, attention, memory, ..."""

    def __init__(
        self,
        channels: int,
        layers: int,
        memory_channels: int,
        dropout: float,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        rotary = Rotary()
        self.fsmn = nn.ModuleList(
            MemoryBlock(channels, memory_channels, dropout) for _ in range(layers)
        )
        self.layers = nn.ModuleList(
            GatedAttention(channels, dropout, rotary) for _ in range(layers)
        )
        self.activation_checkpointing = activation_checkpointing

    def forward(self, x_BLN: Tensor) -> Tensor:
        """Return ``[B, L, N]``."""
        first: Any = self.layers[0]
        table = first.rotary_pos_emb.table(x_BLN.shape[1])
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        for attention, memory in zip(self.layers, self.fsmn, strict=True):
            if recompute:
                x_BLN = checkpoint(
                    lambda x, a=attention, m=memory: m(a(x, table)),
                    x_BLN,
                    use_reentrant=False,
                )
            else:
                x_BLN = memory(attention(x_BLN, table))
        return x_BLN


class ResidualStack(nn.Module):
    """``x + norm(layer_norm(layers(x)))``."""

    def __init__(self, stack: Layers, channels: int, norm: str) -> None:
        super().__init__()
        layer_norm = nn.LayerNorm(channels, eps=1e-6)
        self.intra_mdl = nn.ModuleDict({"mossformerM": stack, "norm": layer_norm})
        self.intra_norm = global_norm(norm, channels)

    def forward(self, x_BLN: Tensor) -> Tensor:
        """Return ``[B, L, N]``."""
        y_BLN = self.intra_mdl["norm"](self.intra_mdl["mossformerM"](x_BLN))
        return x_BLN + self.intra_norm(y_BLN)


class MaskNet(nn.Module):
    """Turn the mixture's features into one non-negative mask for each source."""

    def __init__(
        self,
        encoder_channels: int,
        channels: int,
        num_sources: int,
        norm: str,
        stack: Layers,
    ) -> None:
        super().__init__()
        self.num_sources = num_sources
        self.norm = global_norm(norm, encoder_channels)
        self.conv1d_encoder = nn.Conv1d(encoder_channels, channels, 1, bias=False)
        self.pos_enc = SinusoidalPosition(channels)
        self.mdl = ResidualStack(stack, channels, norm)
        self.prelu = nn.PReLU()
        self.conv1d_out = nn.Conv1d(channels, channels * num_sources, 1)
        self.output: Any = nn.Sequential(nn.Conv1d(channels, channels, 1))
        self.output_gate: Any = nn.Sequential(nn.Conv1d(channels, channels, 1))
        self.conv1_decoder = nn.Conv1d(channels, encoder_channels, 1, bias=False)

    def forward(self, features_BLN: Tensor) -> Tensor:
        """Return ``mask_BLSN``."""
        x_BLN = _pointwise(self.conv1d_encoder, self.norm(features_BLN))
        x_BLN = self.prelu(self.mdl(x_BLN + self.pos_enc(x_BLN.shape[1])))
        x_BLSN = _pointwise(self.conv1d_out, x_BLN).unflatten(
            -1, (self.num_sources, -1)
        )
        gate_BLSN = torch.sigmoid(_pointwise(self.output_gate[0], x_BLSN))
        x_BLSN = torch.tanh(_pointwise(self.output[0], x_BLSN)) * gate_BLSN
        return F.relu(_pointwise(self.conv1_decoder, x_BLSN))


class MossFormer2(nn.Module):
    """MossFormer2: ``mixture_BT -> estimate_BST``.

    The defaults are the published full model (55.7 M parameters); the small one has
    384 channels and 25 layers. Shorter inputs than 1.5 kernels are padded with
    zeros; the frames hold no padding otherwise, so batch only equal lengths: padding
    changes what the norms and the attention see.

    Arguments
    ---------
    encoder_channels : int
        Filters of encoder and decoder.
    channels : int
        Features inside the layers, even.
    layers : int
        Pairs of an attention and a memory block.
    kernel_size : int
        Samples of a filter, even; the hop is half of it.
    num_sources : int
        Number of sources S in the estimate.
    norm : str
        Norm around the stack: "ln" (the published weights), "gln" or "cln".
    max_length : int
        Accepted for the published configurations; there is no limit.
    dropout : float
        Dropout in every block, in training only.
    activation_checkpointing : bool
        Keep only the input of each layer and compute it again in the backward pass.
    mask_mode : str
        "mask" multiplies the mixture's features with the network's output, "map"
        (the published WHAMR! weights) takes the output itself as the features.
    memory_channels : int
        Features inside the memory blocks; 256 in the paper, fewer make a network
        that trains on a CPU.

    Raises
    ------
    ValueError
        For an argument out of range, and for a mixture that is not ``[B, T]``.

    Example
    -------
    >>> model = MossFormer2(encoder_channels=16, channels=16, layers=1)
    >>> model(torch.randn(2, 101)).shape
    torch.Size([2, 2, 101])
    """

    def __init__(
        self,
        encoder_channels: int = 512,
        channels: int = 512,
        layers: int = 24,
        kernel_size: int = 16,
        num_sources: int = 2,
        norm: str = "ln",
        max_length: int = 20000,
        dropout: float = 0.1,
        activation_checkpointing: bool = False,
        mask_mode: str = "mask",
        memory_channels: int = 256,
    ) -> None:
        super().__init__()
        counts = {
            "encoder_channels": (encoder_channels, 1),
            "channels": (channels, 2),
            "layers": (layers, 1),
            "kernel_size": (kernel_size, 2),
            "num_sources": (num_sources, 1),
            "max_length": (max_length, 1),
            "memory_channels": (memory_channels, 1),
        }
        for name, (value, multiple) in counts.items():
            if not isinstance(value, int) or value < 1 or value % multiple:
                kind = "an even" if multiple == 2 else "a"
                raise ValueError(
                    f"MossFormer2: {name}={value!r} must be {kind} whole number above 0"
                )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"MossFormer2: dropout={dropout!r} must be in [0, 1)")
        if mask_mode not in ("mask", "map"):
            raise ValueError(
                f"MossFormer2: mask_mode={mask_mode!r} is unknown: use 'mask' or 'map'"
            )
        self.num_sources, self.kernel_size = num_sources, kernel_size
        self.mask_mode = mask_mode
        #: Arguments that leave no trace in the shapes of the weights.
        self.config = {"norm": norm, "mask_mode": mask_mode}
        hop = kernel_size // 2
        self.enc: Any = nn.ModuleDict(
            {"conv1d": nn.Conv1d(1, encoder_channels, kernel_size, hop, bias=False)}
        )
        stack = Layers(
            channels, layers, memory_channels, dropout, activation_checkpointing
        )
        self.mask_net = MaskNet(encoder_channels, channels, num_sources, norm, stack)
        self.dec = nn.ConvTranspose1d(encoder_channels, 1, kernel_size, hop, bias=False)

    def forward(self, mixture_BT: Tensor) -> Tensor:
        """Separate a batch of equally long mixtures.

        Arguments
        ---------
        mixture_BT : Tensor
            Waveforms, T >= 1.

        Returns
        -------
        Tensor
            ``estimate_BST``, as long as the mixture.
        """
        if mixture_BT.dim() != 2 or mixture_BT.shape[-1] == 0:
            raise ValueError(
                "MossFormer2: the mixture must have shape [batch, samples >= 1], "
                f"not {list(mixture_BT.shape)}"
            )
        features_BLN = self.encode(mixture_BT)
        masks_BLSN = self.mask_net(features_BLN)
        if self.mask_mode == "mask":
            masks_BLSN = masks_BLSN * features_BLN.unsqueeze(2)
        return self.decode(masks_BLSN, mixture_BT.shape[-1]).to(mixture_BT.dtype)

    def encode(self, mixture_BT: Tensor) -> Tensor:
        """Return ``features_BLN = relu(W frames)``, frames overlapping by half."""
        hop = self.kernel_size // 2
        # The instance norms need two frames.
        missing = max(0, self.kernel_size + hop - mixture_BT.shape[-1])
        frames_BLK = F.pad(mixture_BT, (0, missing)).unfold(-1, self.kernel_size, hop)
        return F.relu(F.linear(frames_BLK, self.enc["conv1d"].weight.squeeze(1)))

    def decode(self, features_BLSN: Tensor, samples: int) -> Tensor:
        """Overlap-add the decoded frames and cut or pad them to ``samples``."""
        frames_BSLK = (features_BLSN @ self.dec.weight.squeeze(1)).transpose(1, 2)
        # With a hop of half a kernel, hop l is the head of frame l plus the tail of
        # frame l - 1.
        head, tail = _widen(frames_BSLK).chunk(2, dim=-1)
        estimate_BST = F.pad(head, (0, 0, 0, 1)) + F.pad(tail, (0, 0, 1, 0))
        estimate_BST = estimate_BST.flatten(-2)
        return F.pad(estimate_BST, (0, samples - estimate_BST.shape[-1]))

    @staticmethod
    def adapt_keys(state: dict[str, Any]) -> dict[str, Tensor]:
        """Rename a published state to this class's keys.

        Known are ClearVoice's checkpoint (the whole dictionary or its "model" entry,
        with or without the "module." of data-parallel training), the standalone
        release with its files joined as "encoder.", "masknet." and "decoder.", and
        our own. Unknown keys stay, for a strict load to name them. A ValueError is
        raised if a stored constant (rotary or position frequencies) is not ours.
        """
        if isinstance(state.get("model"), dict):
            state = state["model"]
        adapted = {}
        for key, value in state.items():
            for old, new in _RENAMES:
                if key.startswith(old):
                    key = new + key.removeprefix(old)
            adapted[key] = value
        for key, value in adapted.items():
            if key.endswith(("rotary_pos_emb.freqs", "pos_enc.inv_freq")):
                ours = _frequencies(2 * value.numel())
                if not torch.allclose(value.float().cpu(), ours, rtol=1e-4, atol=0):
                    raise ValueError(
                        f"MossFormer2: {key} holds other frequencies than "
                        "10000 ** (-2i / width): this is not a MossFormer2 state"
                    )
        return adapted


# Applied in this order: a later line sees what an earlier one left.
_RENAMES = (
    ("module.", ""),
    ("model.", ""),
    ("encoder.", "enc."),
    ("decoder.", "dec."),
    ("masknet.", "mask_net."),
    ("mask_net.dual_mdl.0.", "mask_net.mdl."),
    ("mask_net.mdl.intra_mdl.mdl.flashT.", "mask_net.mdl.intra_mdl.mossformerM."),
    ("mask_net.mdl.intra_mdl.mdl.norm.norm.", "mask_net.mdl.intra_mdl.norm."),
)
