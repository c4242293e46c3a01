"""SepFormer: a dual-path transformer that masks a learned filter bank.

Subakan et al., "Attention is all you need in speech separation" (ICASSP 2021,
arXiv 2010.13154), laid out as in SpeechBrain's ``lobes.models.dual_path``: the same
state_dict keys and the same numbers for the same weights. What differs is how they
are computed. Features stay channels-last from the encoder to the decoder, attention
goes through ``scaled_dot_product_attention`` with one product for query, key and
value, no attention map is kept, and the positional table has no end.

Shape letters: B batch, S source, T sample, L frame, N encoder feature, D model
feature, C chunk, K frame in a chunk, A sequence handed to a transformer (a row of
its batch), P position in it, H head, E feature of a head.
"""

import math
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

TABLE_LENGTH = 2500  # positions stored in the published files (`pos_enc.pe`)

# Positions that a transformer takes at a time on the CPU. A sequence never sees its
# neighbours in the batch, so the batch can go in slices: the buffers of a layer then
# stay in the cache, below the size from which malloc asks the kernel for new pages.
CPU_SLICE = 2048


class SepFormer(nn.Module):
    """Separates a mixture into its sources with a dual-path transformer.

    The default arguments are the published model (SpeechBrain's WSJ0Mix
    ``sepformer.yaml``): 25 679 361 parameters for two sources.

    Weights start as they do in SpeechBrain's recipe, which resets each module that
    has ``reset_parameters`` (PyTorch's defaults), while the attention's input
    projection keeps its Xavier start with zero bias. One accident of that recipe is
    not repeated: its dual layers are deep copies, so that their input projections
    start equal; here every layer is drawn on its own.

    Arguments
    ---------
    num_sources : int
        Number of sources to separate.
    encoder_channels : int
        Filters of the encoder and the decoder.
    kernel_size : int
        Samples in a filter, even; filters advance by half of it.
    channels : int | None
        Features inside the transformers, even; ``encoder_channels`` when None.
    dual_layers : int
        Number of dual-path blocks.
    chunk_size : int
        Frames in a chunk, at least 2; chunks overlap by half.
    intra_layers, inter_layers : int
        Transformer layers within the chunks and across them, in each block.
    heads : int
        Attention heads; they divide ``channels``.
    ffn_channels : int
        Hidden features of the feed-forward layers.
    dropout : float
        Dropout probability inside the transformers.
    activation_checkpointing : bool
        Keep only the input of each transformer layer for the backward pass and
        compute the rest again: slower, and much leaner.

    Example
    -------
    >>> model = SepFormer(
    ...     encoder_channels=16, dual_layers=1, intra_layers=1, inter_layers=1,
    ...     heads=2, ffn_channels=32, chunk_size=20,
    ... )
    >>> model(torch.randn(3, 1001)).shape
    torch.Size([3, 2, 1001])
    """

    def __init__(
        self,
        num_sources: int = 2,
        encoder_channels: int = 256,
        kernel_size: int = 16,
        channels: int | None = None,
        dual_layers: int = 2,
        chunk_size: int = 250,
        intra_layers: int = 8,
        inter_layers: int = 8,
        heads: int = 8,
        ffn_channels: int = 1024,
        dropout: float = 0.0,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        channels = encoder_channels if channels is None else channels
        if kernel_size < 2 or kernel_size % 2:
            raise ValueError(f"kernel_size: {kernel_size} is not even and positive")
        if channels % 2 or channels % heads:
            raise ValueError(f"channels: {channels} is not even or not {heads} heads")
        if chunk_size < 2:
            raise ValueError(f"chunk_size: {chunk_size} is less than 2 frames")
        self.num_sources = num_sources
        self.kernel_size = kernel_size
        #: Arguments that leave no trace in the shapes of the weights.
        self.config = {"chunk_size": chunk_size, "heads": heads}
        self.encoder = Encoder(encoder_channels, kernel_size)
        self.masknet = MaskNet(
            encoder_channels,
            channels,
            num_sources,
            dual_layers,
            chunk_size,
            (intra_layers, inter_layers),
            heads,
            ffn_channels,
            dropout,
            activation_checkpointing,
        )
        self.decoder = Decoder(encoder_channels, kernel_size)

    def forward(self, mixture_BT: Tensor) -> Tensor:
        """Separate a batch of mixtures.

        Nothing here knows of padding: the norms and the attention see every frame, so
        mixtures of a batch must have the same true length.

        Arguments
        ---------
        mixture_BT : Tensor
            Mixtures [B, T], any T >= 1, any level.

        Returns
        -------
        Tensor
            Estimates [B, S, T]. As in the reference, the last ``T mod stride`` samples
            (fewer than ``kernel_size / 2``) belong to no frame and come out as zeros;
            only a mixture shorter than a filter is padded.

        Raises
        ------
        ValueError
            If the mixture is not [B, T] with at least one sample.
        """
        if mixture_BT.dim() != 2 or mixture_BT.shape[-1] == 0:
            raise ValueError(
                f"mixture: expected [batch, samples >= 1], got {list(mixture_BT.shape)}"
            )
        length = mixture_BT.shape[-1]
        if length < self.kernel_size:
            mixture_BT = F.pad(mixture_BT, (0, self.kernel_size - length))
        # The two ends are a thousandth of the work and set the precision of the
        # waveform, so they stay in the weights' precision under autocast.
        with torch.autocast(mixture_BT.device.type, enabled=False):
            feature_BLN = self.encoder(mixture_BT.to(self.decoder.weight.dtype))
        mask_BSLN = self.masknet(feature_BLN)
        with torch.autocast(mixture_BT.device.type, enabled=False):
            estimate_BST = self.decoder(mask_BSLN * feature_BLN.unsqueeze(1))
        return F.pad(estimate_BST, (0, length - estimate_BST.shape[-1]))


class Encoder(nn.Module):
    """Strided filter bank and ReLU: [B, T] to [B, L, N]."""

    def __init__(self, encoder_channels: int, kernel_size: int) -> None:
        super().__init__()
        stride = kernel_size // 2
        self.conv1d = nn.Conv1d(1, encoder_channels, kernel_size, stride, bias=False)

    def forward(self, mixture_BT: Tensor) -> Tensor:
        # A matrix product over the windows is the convolution, channels last.
        weight = self.conv1d.weight
        kernel = weight.shape[-1]
        windows = mixture_BT.unfold(-1, kernel, kernel // 2)
        return F.linear(windows, weight.flatten(1)).relu_()


class Decoder(nn.ConvTranspose1d):
    """Transposed filter bank: [B, S, L, N] to [B, S, T]."""

    def __init__(self, encoder_channels: int, kernel_size: int) -> None:
        super().__init__(encoder_channels, 1, kernel_size, kernel_size // 2, bias=False)

    # Unlike the parent's, it takes no output size.
    def forward(self, feature_BSLN: Tensor) -> Tensor:  # type: ignore[override]
        # Frames overlap by half: first halves, plus second halves one stride later.
        frames = feature_BSLN.to(self.weight.dtype) @ self.weight.flatten(1)
        first, second = frames.chunk(2, dim=-1)
        return (F.pad(first, (0, 0, 0, 1)) + F.pad(second, (0, 0, 1, 0))).flatten(-2)


class MaskNet(nn.Module):
    """Turn encoder features into one mask for each source: [B, L, N] to [B, S, L, N].

    `layers` are those within the chunks and across them.
    """

    def __init__(
        self,
        encoder_channels: int,
        channels: int,
        num_sources: int,
        dual_layers: int,
        chunk_size: int,
        layers: tuple[int, int],
        heads: int,
        ffn_channels: int,
        dropout: float,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.num_sources = num_sources
        self.chunk_size = chunk_size
        self.norm = GlobalNorm(1, encoder_channels, eps=1e-8)
        self.conv1d = nn.Conv1d(encoder_channels, channels, 1, bias=False)
        inner = (channels, heads, ffn_channels, dropout, activation_checkpointing)
        self.dual_mdl = nn.ModuleList(
            DualPathBlock(
                Transformer(layers[0], *inner), Transformer(layers[1], *inner), channels
            )
            for _ in range(dual_layers)
        )
        self.conv2d = nn.Conv2d(channels, channels * num_sources, kernel_size=1)
        self.end_conv1x1 = nn.Conv1d(channels, encoder_channels, 1, bias=False)
        self.prelu = nn.PReLU()
        self.output = nn.Sequential(nn.Conv1d(channels, channels, 1), nn.Tanh())
        self.output_gate = nn.Sequential(nn.Conv1d(channels, channels, 1), nn.Sigmoid())

    def forward(self, feature_BLN: Tensor) -> Tensor:
        length = feature_BLN.shape[1]
        x_BLD = pointwise(self.conv1d, self.norm(feature_BLN))
        x_BCKD = split_into_chunks(x_BLD, self.chunk_size)
        for block in self.dual_mdl:
            x_BCKD = block(x_BCKD)
        # The reference maps every chunk to the sources, then adds the overlaps. Each
        # frame lies in exactly two chunks, so adding first, with twice the bias, is
        # the same map at half the work.
        x_BLD = overlap_add(self.prelu(x_BCKD), length)
        bias: Any = self.conv2d.bias
        x_BLD = F.linear(x_BLD, self.conv2d.weight.flatten(1), 2 * bias)
        x_BSLD = x_BLD.unflatten(-1, (self.num_sources, -1)).transpose(1, 2)
        value: Any = self.output[0]
        gate: Any = self.output_gate[0]
        weight = torch.cat([value.weight, gate.weight]).flatten(1)
        bias = torch.cat([value.bias, gate.bias])
        value_BSLD, gate_BSLD = F.linear(x_BSLD, weight, bias).chunk(2, dim=-1)
        x_BSLD = torch.tanh(value_BSLD) * torch.sigmoid(gate_BSLD)
        return pointwise(self.end_conv1x1, x_BSLD).relu_()


class DualPathBlock(nn.Module):
    """``x + norm(intra(x))`` along the chunks, then ``x + norm(inter(x))`` across."""

    def __init__(self, intra: nn.Module, inter: nn.Module, channels: int) -> None:
        super().__init__()
        self.intra_mdl = intra
        self.inter_mdl = inter
        self.intra_norm = GlobalNorm(1, channels, eps=1e-8)
        self.inter_norm = GlobalNorm(1, channels, eps=1e-8)

    def forward(self, x_BCKD: Tensor) -> Tensor:
        batch, chunks, size, _ = x_BCKD.shape
        y = self.intra_mdl(x_BCKD.flatten(0, 1)).unflatten(0, (batch, chunks))
        x_BCKD = x_BCKD + self.intra_norm(y)
        y = self.inter_mdl(x_BCKD.transpose(1, 2).flatten(0, 1))
        y = self.inter_norm(y.unflatten(0, (batch, size)))
        return x_BCKD + y.transpose(1, 2)


class Transformer(nn.Module):
    """Sinusoidal positions and a stack of pre-norm transformer layers on [A, P, D]."""

    def __init__(
        self,
        layers: int,
        channels: int,
        heads: int,
        ffn_channels: int,
        dropout: float,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.mdl: Any = nn.Module()
        self.mdl.layers = nn.ModuleList(
            TransformerLayer(channels, heads, ffn_channels, dropout)
            for _ in range(layers)
        )
        self.mdl.norm = layer_norm(channels)
        self.pos_enc: Any = nn.Module()
        self.pos_enc.register_buffer("pe", sinusoid(0, TABLE_LENGTH, channels)[None])

    def forward(self, x_APD: Tensor) -> Tensor:
        positions = x_APD.shape[1]
        on_cpu = x_APD.device.type == "cpu" and not torch.compiler.is_compiling()
        rows = max(1, CPU_SLICE // positions) if on_cpu else x_APD.shape[0]
        table_PD = self.positions(positions)
        # Slices of equal size: a rest of a row or two would cost a slice's overhead.
        slices = -(-x_APD.shape[0] // rows)
        if slices == 1:
            return self.stack(x_APD + table_PD)
        return torch.cat([self.stack(x + table_PD) for x in x_APD.chunk(slices)])

    def stack(self, x_APD: Tensor) -> Tensor:
        """Run the layers and the closing norm."""
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        for layer in self.mdl.layers:
            if recompute:
                x_APD = checkpoint(layer, x_APD, use_reentrant=False)
            else:
                x_APD = layer(x_APD)
        return self.mdl.norm(x_APD)

    def positions(self, length: int) -> Tensor:
        """Return the positions [length, D], continued where the table ends."""
        table_PD = self.pos_enc.pe[0]
        missing = length - len(table_PD)
        if missing <= 0:
            return table_PD[:length]
        tail = sinusoid(len(table_PD), missing, table_PD.shape[-1], table_PD.device)
        return torch.cat([table_PD, tail.to(table_PD.dtype)])


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and feed-forward layer on [A, P, D]."""

    def __init__(
        self, channels: int, heads: int, ffn_channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_att = named(att=SelfAttention(channels, heads, dropout))
        self.pos_ffn: Any = named(
            ffn=nn.Sequential(
                nn.Linear(channels, ffn_channels),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(ffn_channels, channels),
            )
        )
        self.norm1 = layer_norm(channels)
        self.norm2 = layer_norm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_APD: Tensor) -> Tensor:
        x_APD = x_APD + self.dropout(self.self_att(self.norm1(x_APD)))
        first, relu, dropout, second = self.pos_ffn.ffn
        y_APF = dropout(relu(linear(self.norm2(x_APD), first.weight, first.bias)))
        return x_APD + self.dropout(linear(y_APF, second.weight, second.bias))


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameters of ``nn.MultiheadAttention``."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x_APD: Tensor) -> Tensor:
        qkv = linear(x_APD, self.in_proj_weight, self.in_proj_bias)
        q_AHPE, k_AHPE, v_AHPE = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in qkv.chunk(3, dim=-1)
        )
        dropout = self.dropout if self.training else 0.0
        y_AHPE = attend(q_AHPE, k_AHPE, v_AHPE, dropout)
        return self.out_proj(y_AHPE.transpose(1, 2).flatten(-2))


def attend(q_AHPE: Tensor, k_AHPE: Tensor, v_AHPE: Tensor, dropout: float) -> Tensor:
    """Softmax attention without a map in memory, in the fast form for the device.

    The CPU kernel's backward pass in bfloat16 takes up to four times as long as in
    float32 (33 to 250 positions, AVX-512), so training there attends in float32.
    """
    if q_AHPE.device.type != "cpu" or not q_AHPE.requires_grad:
        return F.scaled_dot_product_attention(q_AHPE, k_AHPE, v_AHPE, dropout_p=dropout)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(
            q_AHPE.float(), k_AHPE.float(), v_AHPE.float(), dropout_p=dropout
        )


class GlobalNorm(nn.GroupNorm):
    """Group norm with one group, on channels-last input [B, ..., D].

    ``(x - mean) / sqrt(var + eps) * weight + bias``: each example has one mean and
    variance over all positions and channels, and each channel a gain and a bias.
    Computed at least in float32, because eps 1e-8 vanishes in half precision.
    """

    def forward(self, x: Tensor) -> Tensor:
        over = tuple(range(1, x.dim()))
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        x = x - x.mean(over, keepdim=True)
        variance = x.square().mean(over, keepdim=True)
        return torch.addcmul(
            self.bias, x, self.weight * torch.rsqrt(variance + self.eps)
        )


def split_into_chunks(x_BLD: Tensor, size: int) -> Tensor:
    """Cut frames into chunks that overlap by half: [B, L, D] to [B, C, K, D].

    Half a chunk of zeros stands before the first frame, and zeros fill up the end, so
    that every frame lies in exactly two chunks: an even one and an odd one.
    """
    hop, length = size // 2, x_BLD.shape[1]
    gap = size - (hop + length) % size
    x_BLD = F.pad(x_BLD, (0, 0, hop, gap + hop))
    total = hop + length + gap
    even = x_BLD[:, :total].unflatten(1, (-1, size))
    odd = x_BLD[:, hop:].unflatten(1, (-1, size))
    return torch.stack([even, odd], dim=2).flatten(1, 2)


def overlap_add(x_BCKD: Tensor, length: int) -> Tensor:
    """Add the two chunks of every frame: [B, C, K, D] to [B, length, D]."""
    hop = x_BCKD.shape[2] // 2
    even, odd = x_BCKD.unflatten(1, (-1, 2)).unbind(2)
    even = even.flatten(1, 2)[:, hop : hop + length]
    return even + odd.flatten(1, 2)[:, :length]


def sinusoid(
    start: int, length: int, channels: int, device: torch.device | None = None
) -> Tensor:
    """Return sines and cosines in turn, [length, channels], from position ``start`` on.

    ``angle[p, i] = p * 10000 ** (-2 i / channels)``
    """
    position = torch.arange(start, start + length, device=device).float()
    even = torch.arange(0, channels, 2, device=device).float()
    angle = position[:, None] * torch.exp(even * -(math.log(10000.0) / channels))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a matrix; a large one on the CPU by oneDNN, twice as fast as MKL on AMD."""
    fast = x.device.type == "cpu" and x.dtype == torch.float32
    fast = fast and weight.numel() >= 2**16 and not torch.is_autocast_enabled("cpu")
    if not fast or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    image_1C1P = x.flatten(0, -2)[None].mT.unsqueeze(2)
    # A dilation means nothing to one tap, but with it PyTorch always asks oneDNN.
    y_1C1P = F.conv2d(image_1C1P, weight[..., None, None], bias, dilation=2)
    return y_1C1P[0, :, 0].t().unflatten(0, x.shape[:-1])


def pointwise(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """Apply a convolution of kernel 1 to channels-last input."""
    return linear(x, conv.weight.flatten(1), conv.bias)


def layer_norm(channels: int) -> nn.Module:
    """Return a layer norm under the key that SpeechBrain gives it."""
    return named(norm=nn.LayerNorm(channels, eps=1e-6))


def named(**modules: nn.Module) -> nn.Sequential:
    """Return a sequence of modules with names, to keep the published keys."""
    return nn.Sequential(OrderedDict(modules))
