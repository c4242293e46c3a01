"""HTDemucs: music separation in the time and the frequency domain at once.

Rouard, Massa, Défossez, "Hybrid transformers for music source separation" (ICASSP
2023, arXiv 2211.08553), with the state_dict keys of the demucs package and the same
numbers for the same weights. Two U-Nets run side by side, one over the waveform and
one over its spectrogram; at the bottom a transformer lets them look at each other, and
their outputs are added:

    mixture ──┬── STFT ── encoder ───┐              ┌── decoder ── inverse STFT ── + ──
              └───────── tencoder ───┴ transformer ─┴── tdecoder ───────────────── ┘

Supported is the family of the published models: complex numbers as channels, sine
positions, pre-norm attention, and branches that never merge (at most 4 levels). What
differs from demucs is how it computes: attention goes through
``scaled_dot_product_attention`` in training and evaluation alike, and the length of a
training batch leaves no trace in the model.

Shape letters: B batch, S source, C audio channel, T sample, Z audio channel times the
two parts of a complex number, N feature channel, J feature inside a residual branch, K
feature before a gate, F frequency, L frame, P position in a sequence, D transformer
feature, H head, E feature of a head, X a row of a batch of sequences.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

KERNEL, STRIDE = 8, 4  # of every encoder and decoder layer

MAX_DEPTH = 4  # a fifth level would normalise groups of channels: another network

EMBEDDING_SCALE = 10.0  # of the frequency embedding: speeds up its learning

EMBEDDING_WEIGHT = 0.2  # its share in the features

DCONV_INIT, LAYER_SCALE_INIT = 1e-3, 1e-4  # residual branches start almost closed

RESCALE = 0.1  # target of the initial weights' standard deviation

MAX_PERIOD = 10000.0

Seconds = int | float | str | Fraction | Sequence[int]


class HTDemucs(nn.Module):
    """Separates a mixture of music into its sources.

    The default arguments are the published model (demucs' ``955717e8``): 41 984 456
    parameters for four stereo sources. demucs' repository default is
    ``dconv_mode=1, bottom_channels=0, t_dropout=0.0``: 26 899 536.

    In evaluation a mixture shorter than the segment is padded to it with zeros, as
    demucs does, for the model has learned no shorter ones. The segment is what this
    constructor was given: no forward pass changes it, so that evaluation depends on
    the weights, the configuration and the input alone.

    Arguments
    ---------
    sources : Sequence[str]
        Names of the sources, in the order of the output.
    segment_seconds : int | float | str | Fraction | Sequence[int]
        Length of the training examples; two integers are a fraction.
    sample_rate : int
        Samples a second.
    audio_channels : int
        Channels of the mixture and of each source.
    channels : int
        Features of the first level.
    growth : int
        Factor of the features from one level to the next.
    depth : int
        Levels of the U-Nets, 1 to 4; ``nfft / 2`` frequencies must allow for them.
    nfft : int
        Samples of an STFT frame; frames advance by a quarter of it.
    dconv_mode : int
        Dilated residual branches in: 0 no layer, 1 encoders, 2 decoders, 3 both.
    dconv_comp, dconv_depth : int
        Reduction of the features inside such a branch, and branches a layer.
    bottom_channels : int
        Features of the transformer; 0: those of the last level.
    t_layers, t_heads : int
        Transformer layers of each of the two branches, self- and cross-attention in
        turn (0: no transformer), and attention heads.
    t_dropout : float
        Dropout probability inside the transformer.
    attention_dropout : bool
        Apply it to the attention weights as well, as demucs does. Without, the CPU
        keeps no attention map: half the memory of a training step at 7.8 s.
    activation_checkpointing : bool
        Keep only the input of each layer for the backward pass and compute the rest
        again: slower, and much leaner.

    Raises
    ------
    ValueError
        An argument is out of range, or they do not fit each other; it is named.

    Example
    -------
    >>> model = HTDemucs(
    ...     ["music", "speech"], segment_seconds=(1, 10), sample_rate=8000, channels=8,
    ...     depth=2, nfft=256, bottom_channels=0, t_layers=1, t_heads=1,
    ... )
    >>> model(torch.randn(3, 2, 1001)).shape
    torch.Size([3, 2, 2, 1001])
    """

    def __init__(
        self,
        sources: Sequence[str],
        segment_seconds: Seconds = (39, 5),
        sample_rate: int = 44100,
        *,
        audio_channels: int = 2,
        channels: int = 48,
        growth: int = 2,
        depth: int = 4,
        nfft: int = 4096,
        dconv_mode: int = 3,
        dconv_comp: int = 8,
        dconv_depth: int = 2,
        bottom_channels: int = 512,
        t_layers: int = 5,
        t_heads: int = 8,
        t_dropout: float = 0.02,
        attention_dropout: bool = True,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        #: The arguments that a package of demucs is compared with.
        self.config: dict[str, Any] = {
            "sample_rate": sample_rate,
            "audio_channels": audio_channels,
            "channels": channels,
            "growth": growth,
            "depth": depth,
            "nfft": nfft,
            "dconv_mode": dconv_mode,
            "dconv_comp": dconv_comp,
            "dconv_depth": dconv_depth,
            "bottom_channels": bottom_channels,
            "t_layers": t_layers,
            "t_heads": t_heads,
            "t_dropout": t_dropout,
        }
        _check_arguments(sources, **self.config)
        self.segment = seconds(segment_seconds)
        self.segment_samples = int(self.segment * sample_rate)
        if self.segment_samples < 1:
            raise ValueError(f"segment_seconds={segment_seconds!r}: not one sample")
        self.sources = list(sources)
        self.sample_rate = sample_rate
        self.audio_channels = audio_channels
        self.nfft = nfft
        self.activation_checkpointing = activation_checkpointing
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        self.tencoder, self.tdecoder = nn.ModuleList(), nn.ModuleList()
        branch = {"compress": dconv_comp, "depth": dconv_depth}
        self._add_levels(
            [channels * growth**level for level in range(depth)],
            down=branch if dconv_mode & 1 else None,
            up=branch if dconv_mode & 2 else None,
        )
        rescale_convolutions(self)
        bottom = channels * growth ** (depth - 1)
        features = bottom_channels or bottom
        self.bottom = bool(bottom_channels)
        if self.bottom:
            self.channel_upsampler = nn.Conv1d(bottom, features, 1)
            self.channel_downsampler = nn.Conv1d(features, bottom, 1)
            self.channel_upsampler_t = nn.Conv1d(bottom, features, 1)
            self.channel_downsampler_t = nn.Conv1d(features, bottom, 1)
        self.crosstransformer = None
        if t_layers:
            in_attention = t_dropout if attention_dropout else 0.0
            self.crosstransformer = CrossTransformer(
                features, t_heads, t_layers, t_dropout, in_attention
            )

    def _add_levels(
        self,
        widths: list[int],
        down: dict[str, int] | None,
        up: dict[str, int] | None,
    ) -> None:
        """Add the layers of both U-Nets, whose levels have so many features.

        `down` and `up` describe the residual branches of encoders and decoders.
        """
        in_channels = self.audio_channels
        out_channels = len(self.sources) * self.audio_channels
        for level, width in enumerate(widths):
            two = 2 if level == 0 else 1  # real and imaginary part
            # In the order of demucs, so that a seed starts both with equal weights.
            encoder = EncoderLayer(two * in_channels, width, True, down)
            tencoder = EncoderLayer(in_channels, width, False, down)
            decoder = DecoderLayer(width, two * out_channels, True, up, level == 0)
            tdecoder = DecoderLayer(width, out_channels, False, up, level == 0)
            self.encoder.append(encoder)
            self.tencoder.append(tencoder)
            self.decoder.insert(0, decoder)
            self.tdecoder.insert(0, tdecoder)
            if level == 0:
                self.freq_emb = FrequencyEmbedding(self.nfft // 2 // STRIDE, width)
            in_channels = out_channels = width

    def forward(self, mixture_BCT: Tensor) -> Tensor:
        """Separate a batch of mixtures.

        Arguments
        ---------
        mixture_BCT : Tensor
            Mixtures [B, C, T], any T >= 1, any level. In evaluation fewer samples
            than the segment's are padded to it; more are used as they are.

        Returns
        -------
        Tensor
            Estimates [B, S, C, T], at least in float32.

        Raises
        ------
        ValueError
            If the mixture is not [B, C, T] with the model's C and at least one sample.
        """
        if (
            mixture_BCT.dim() != 3
            or mixture_BCT.shape[1] != self.audio_channels
            or mixture_BCT.shape[-1] == 0
        ):
            raise ValueError(
                f"mixture: expected [batch, {self.audio_channels} channels, samples "
                f">= 1], got {list(mixture_BCT.shape)}"
            )
        length = mixture_BCT.shape[-1]
        # The waveform's precision is that of the weights also under autocast.
        first: Any = self.encoder[0]
        mixture_BCT = mixture_BCT.to(first.conv.weight.dtype)
        if not self.training:  # without a branch, so that any length can be exported
            missing: Any = torch.sym_max(0, self.segment_samples - length)
            mixture_BCT = F.pad(mixture_BCT, (0, missing))
        with torch.autocast(mixture_BCT.device.type, enabled=False):
            spectrum_BZFL = to_spectrum(mixture_BCT, self.nfft)
            x_BZFL, mean, std = normalise(spectrum_BZFL)
            xt_BCT, mean_t, std_t = normalise(mixture_BCT)
        x_BZFL, xt_BCT = self._networks(x_BZFL, xt_BCT)
        with torch.autocast(mixture_BCT.device.type, enabled=False):
            x_BZFL = torch.addcmul(mean, x_BZFL.to(std.dtype), std)
            x_BCT = to_waveform(x_BZFL, self.nfft, mixture_BCT.shape[-1])
            x_BCT = x_BCT + torch.addcmul(mean_t, xt_BCT.to(std_t.dtype), std_t)
        shape = (len(self.sources), self.audio_channels)
        return x_BCT.unflatten(1, shape)[..., :length]

    def _networks(self, x: Tensor, xt: Tensor) -> tuple[Tensor, Tensor]:
        """Run both U-Nets: [B, Z, F, L] and [B, C, T] to S times as many channels."""
        skips, skips_t, lengths_t = [], [], []
        for level, (encode, encode_t) in enumerate(
            zip(self.encoder, self.tencoder, strict=True)
        ):
            lengths_t.append(xt.shape[-1])
            x, xt = self._run(encode, x), self._run(encode_t, xt)
            if level == 0:
                x = x + self.freq_emb().to(x.dtype)
            skips.append(x)
            skips_t.append(xt)
        if self.crosstransformer is not None:
            x, xt = self._transform(self.crosstransformer, x, xt)
        for decode, decode_t in zip(self.decoder, self.tdecoder, strict=True):
            x = self._run(decode, x, skips.pop())
            xt = self._run(decode_t, xt, skips_t.pop())[..., : lengths_t.pop()]
        return x, xt

    def _transform(
        self, transformer: nn.Module, x_BNFL: Tensor, xt_BNL: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the transformer, between a change of the number of features and back."""
        frequencies = x_BNFL.shape[2]
        # Positions of the spectrogram run over the frequencies first, then the frames.
        x_BPD = x_BNFL.permute(0, 3, 2, 1).flatten(1, 2)
        xt_BPD = xt_BNL.transpose(1, 2)
        if self.bottom:
            x_BPD = pointwise(self.channel_upsampler, x_BPD)
            xt_BPD = pointwise(self.channel_upsampler_t, xt_BPD)
        x_BPD, xt_BPD = transformer(x_BPD, xt_BPD, frequencies, self._run)
        if self.bottom:
            x_BPD = pointwise(self.channel_downsampler, x_BPD)
            xt_BPD = pointwise(self.channel_downsampler_t, xt_BPD)
        x_BNFL = x_BPD.unflatten(1, (-1, frequencies)).permute(0, 3, 2, 1)
        return x_BNFL, xt_BPD.transpose(1, 2)

    def _run(self, layer: nn.Module, *inputs: Tensor) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)


# ---------------------------------------------------------------- the U-Nets


class EncoderLayer(nn.Module):
    """Down by a factor of 4 in frequency or time, with a residual branch and a gate.

    Input [B, N, F, L] and output [B, N', F / 4, L], or [B, N, T] and [B, N', T / 4],
    rounded up.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        frequency: bool,
        branch: dict[str, int] | None,
    ) -> None:
        super().__init__()
        self.frequency = frequency
        self.conv: nn.Module
        self.rewrite: nn.Module
        pad = KERNEL // 4
        if frequency:
            kernel, stride, padding = (KERNEL, 1), (STRIDE, 1), (pad, 0)
            self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding)
            self.rewrite = nn.Conv2d(channels, 2 * channels, 1)
        else:
            self.conv = nn.Conv1d(in_channels, channels, KERNEL, STRIDE, pad)
            self.rewrite = nn.Conv1d(channels, 2 * channels, 1)
        self.dconv = DilatedBranches(channels, **branch) if branch else None

    def forward(self, x: Tensor) -> Tensor:
        if not self.frequency:
            x = F.pad(x, (0, -x.shape[-1] % STRIDE))
        x = F.gelu(self.conv(x))
        if self.dconv is not None:
            x = along_time(self.dconv, x)
        return F.glu(self.rewrite(x), dim=1)


class DecoderLayer(nn.Module):
    """The way back: skip, gate, residual branch, and up by a factor of 4.

    Input and skip [B, N, F, L], output [B, N', 4 F, L]; or [B, N, T] and [B, N', 4 T].
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        frequency: bool,
        branch: dict[str, int] | None,
        last: bool,
    ) -> None:
        super().__init__()
        self.last = last
        self.conv_tr: nn.Module
        self.rewrite: nn.Module
        pad = KERNEL // 4
        if frequency:
            self.conv_tr = nn.ConvTranspose2d(
                channels, out_channels, (KERNEL, 1), (STRIDE, 1), (pad, 0)
            )
            self.rewrite = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        else:
            self.conv_tr = nn.ConvTranspose1d(
                channels, out_channels, KERNEL, STRIDE, pad
            )
            self.rewrite = nn.Conv1d(channels, 2 * channels, 3, padding=1)
        self.dconv = DilatedBranches(channels, **branch) if branch else None

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.glu(self.rewrite(x + skip), dim=1)
        if self.dconv is not None:
            x = along_time(self.dconv, x)
        x = self.conv_tr(x)
        return x if self.last else F.gelu(x)


class DilatedBranches(nn.Module):
    """Residual branches along time with growing dilation: [X, N, T] to the same."""

    def __init__(self, channels: int, compress: int, depth: int) -> None:
        super().__init__()
        hidden = channels // compress
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(channels, hidden, 3, dilation=2**i, padding=2**i),
                nn.GroupNorm(1, hidden),
                nn.GELU(),
                nn.Conv1d(hidden, 2 * channels, 1),
                nn.GroupNorm(1, 2 * channels),
                nn.GLU(dim=1),
                ChannelScale(channels, DCONV_INIT),
            )
            for i in range(depth)
        )

    def forward(self, x_XNT: Tensor) -> Tensor:
        layer: Any
        for layer in self.layers:
            narrow, norm, gelu, widen, norm_wide, gate, scale = layer
            h_XJT = gelu(norm(narrow(x_XNT)))
            y_XNT = gate(widened_norm(h_XJT, widen, norm_wide))
            x_XNT = torch.addcmul(x_XNT, scale.scale[:, None].to(y_XNT.dtype), y_XNT)
        return x_XNT


def widened_norm(h_XJT: Tensor, widen: nn.Conv1d, norm: nn.GroupNorm) -> Tensor:
    """Return `norm(widen(h))`, [X, K, T], without a tensor of that size between them.

    `widen` has kernel 1 and many more outputs than inputs, and `norm` has one group.
    Channel k of ``y = W h + b`` has the mean ``m_k = (W mean(h) + b)_k`` over time and
    the variance ``(W cov(h) W^T)_kk``. Over channels and time together

        mean(y) = mean_k(m_k),  var(y) = trace(cov(h) W^T W) / K + var_k(m_k),

    two sums of squares, so that nothing cancels. The norm is then one more matrix:
    ``gain_k = weight_k / std(y)`` times W, and an offset for each channel.
    """
    weight_KJ = widen.weight.squeeze(-1)
    offset_K: Any = widen.bias
    with torch.autocast(h_XJT.device.type, enabled=False):
        wide_XJT = h_XJT.to(weight_KJ.dtype)
        mean_XJ1 = wide_XJT.mean(-1, keepdim=True)
        deviation_XJT = wide_XJT - mean_XJ1
        covariance_XJJ = deviation_XJT @ deviation_XJT.mT / h_XJT.shape[-1]
        mean_XK = F.linear(mean_XJ1.squeeze(-1), weight_KJ, offset_K)
        within_X = (covariance_XJJ * (weight_KJ.mT @ weight_KJ)).sum((1, 2))
        within_X = within_X / norm.num_channels
        variance_X = within_X + mean_XK.var(1, correction=0)
        gain_XK = norm.weight * torch.rsqrt(variance_X + norm.eps)[:, None]
        offset_XK = offset_K - mean_XK.mean(1, keepdim=True)
        offset_XK = torch.addcmul(norm.bias, gain_XK, offset_XK)
        product_XKJ = gain_XK.unsqueeze(-1) * weight_KJ
    return torch.baddbmm(offset_XK.unsqueeze(-1), product_XKJ, h_XJT)


class ChannelScale(nn.Module):
    """A learned gain for each channel; the module that owns it multiplies."""

    def __init__(self, channels: int, init: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), init))


class FrequencyEmbedding(nn.Module):
    """A learned vector for each frequency, which convolutions alone could not tell."""

    def __init__(self, frequencies: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(frequencies, channels)
        with torch.no_grad():
            # It starts smooth over the frequencies: a random walk of constant variance.
            walk = self.embedding.weight.cumsum(dim=0)
            steps = torch.arange(1, frequencies + 1, device=walk.device)
            walk = walk / steps.to(walk).sqrt()[:, None]
            self.embedding.weight.copy_(walk / EMBEDDING_SCALE)

    def forward(self) -> Tensor:
        """Return what is added to the features, [N, F, 1]."""
        scale = EMBEDDING_WEIGHT * EMBEDDING_SCALE
        return scale * self.embedding.weight.t().unsqueeze(-1)


def along_time(branches: nn.Module, x: Tensor) -> Tensor:
    """Apply the branches to [B, N, T], or to every frequency of [B, N, F, L]."""
    if x.dim() == 3:
        return branches(x)
    y_XNL = branches(x.transpose(1, 2).flatten(0, 1))
    return y_XNL.unflatten(0, (x.shape[0], -1)).transpose(1, 2)


def rescale_convolutions(model: nn.Module) -> None:
    """Bring the initial weights' deviation halfway (in decibels) to `RESCALE`."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, kinds):
                scale = (module.weight.std() / RESCALE).sqrt()
                for parameter in module.parameters(recurse=False):
                    parameter.div_(scale)


# ---------------------------------------------------------------- the transformer


class CrossTransformer(nn.Module):
    """Two sequences that attend to themselves and to each other in turn."""

    def __init__(
        self,
        features: int,
        heads: int,
        layers: int,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(features)
        self.norm_in_t = nn.LayerNorm(features)
        self.layers, self.layers_t = nn.ModuleList(), nn.ModuleList()
        for index in range(layers):
            kind = CrossLayer if index % 2 else SelfLayer
            for stack in (self.layers, self.layers_t):
                stack.append(kind(features, heads, dropout, attention_dropout))

    def forward(
        self,
        x_BPD: Tensor,
        xt_BPD: Tensor,
        frequencies: int,
        run: Callable[..., Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Transform the spectrogram's sequence and the waveform's.

        `run(layer, *inputs)` calls a layer, with or without checkpointing.
        """
        frames, features = x_BPD.shape[1] // frequencies, x_BPD.shape[-1]
        table_PD = grid_positions(frames, frequencies, features, x_BPD.device)
        x_BPD = self.norm_in(x_BPD) + table_PD
        table_PD = line_positions(xt_BPD.shape[1], features, x_BPD.device)
        xt_BPD = self.norm_in_t(xt_BPD) + table_PD
        for layer, layer_t in zip(self.layers, self.layers_t, strict=True):
            if isinstance(layer, CrossLayer):
                x_BPD, xt_BPD = run(layer, x_BPD, xt_BPD), run(layer_t, xt_BPD, x_BPD)
            else:
                x_BPD, xt_BPD = run(layer, x_BPD), run(layer_t, xt_BPD)
        return x_BPD, xt_BPD


class TransformerLayer(nn.Module):
    """Base of self- and cross-attention layers: feed-forward, norms, gains."""

    def __init__(self, features: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.linear1 = Linear(features, 4 * features)
        self.linear2 = Linear(4 * features, features)
        self.norm1 = nn.LayerNorm(features)
        self.norm2 = nn.LayerNorm(features)
        self.norm_out = GlobalNorm(1, features)
        self.gamma_1 = ChannelScale(features, LAYER_SCALE_INIT)
        self.gamma_2 = ChannelScale(features, LAYER_SCALE_INIT)

    def add(self, x_BPD: Tensor, gamma: ChannelScale, y_BPD: Tensor) -> Tensor:
        """Add a residual branch."""
        return torch.addcmul(x_BPD, gamma.scale, self.drop(y_BPD))

    def feed_forward(self, x_BPD: Tensor) -> Tensor:
        """Apply two linear layers with a GELU between them."""
        return self.linear2(self.drop(F.gelu(self.linear1(x_BPD))))

    def drop(self, x: Tensor) -> Tensor:
        """Drop values, in training."""
        return F.dropout(x, self.dropout, self.training)


class SelfLayer(TransformerLayer):
    """Self-attention and feed-forward: [B, P, D] to the same."""

    def __init__(
        self, features: int, heads: int, dropout: float, attention_dropout: float
    ) -> None:
        attention = Attention(features, heads, attention_dropout)
        super().__init__(features, dropout)
        self.self_attn = attention

    def forward(self, x_BPD: Tensor) -> Tensor:
        y_BPD = self.norm1(x_BPD)
        x_BPD = self.add(x_BPD, self.gamma_1, self.self_attn(y_BPD, y_BPD))
        x_BPD = self.add(x_BPD, self.gamma_2, self.feed_forward(self.norm2(x_BPD)))
        return self.norm_out(x_BPD)


class CrossLayer(TransformerLayer):
    """Attention to the other branch and feed-forward: [B, P, D] to the same."""

    def __init__(
        self, features: int, heads: int, dropout: float, attention_dropout: float
    ) -> None:
        attention = Attention(features, heads, attention_dropout)
        super().__init__(features, dropout)
        self.cross_attn = attention
        self.norm3 = nn.LayerNorm(features)

    def forward(self, x_BPD: Tensor, other_BPD: Tensor) -> Tensor:
        y_BPD = self.cross_attn(self.norm1(x_BPD), self.norm2(other_BPD))
        x_BPD = self.add(x_BPD, self.gamma_1, y_BPD)
        x_BPD = self.add(x_BPD, self.gamma_2, self.feed_forward(self.norm3(x_BPD)))
        return self.norm_out(x_BPD)


class Attention(nn.Module):
    """Multi-head attention with the parameters of ``nn.MultiheadAttention``."""

    def __init__(self, features: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * features, features))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * features))
        self.out_proj = Linear(features, features)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query_BPD: Tensor, key_BPD: Tensor) -> Tensor:
        if query_BPD is key_BPD:
            projected = linear(query_BPD, self.in_proj_weight, self.in_proj_bias)
            q, k, v = projected.chunk(3, dim=-1)
        else:
            sizes = [query_BPD.shape[-1], 2 * query_BPD.shape[-1]]
            weight_q, weight_kv = self.in_proj_weight.split(sizes)
            bias_q, bias_kv = self.in_proj_bias.split(sizes)
            q = linear(query_BPD, weight_q, bias_q)
            k, v = linear(key_BPD, weight_kv, bias_kv).chunk(2, dim=-1)
        q_BHPE, k_BHPE, v_BHPE = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v)
        )
        y_BHPE = F.scaled_dot_product_attention(
            q_BHPE, k_BHPE, v_BHPE, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out_proj(y_BHPE.transpose(1, 2).flatten(-2))


class GlobalNorm(nn.GroupNorm):
    """Group norm with one group, on channels-last input [B, P, D], in float32."""

    def forward(self, x_BPD: Tensor) -> Tensor:
        x_BPD = x_BPD.to(self.weight.dtype)
        x_BPD = x_BPD - x_BPD.mean((1, 2), keepdim=True)
        variance = x_BPD.square().mean((1, 2), keepdim=True)
        gain = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias, x_BPD, gain)


def line_positions(length: int, features: int, device: torch.device) -> Tensor:
    """Return the waveform's positions [P, D]: all cosines, then all sines.

    Position p has the angles ``p / MAX_PERIOD ** (i / (D / 2 - 1))``.
    """
    half = features // 2
    position = torch.arange(length, device=device)[:, None]
    exponent = torch.arange(half, device=device) / max(half - 1, 1)
    angle = position / MAX_PERIOD**exponent
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def grid_positions(
    frames: int, frequencies: int, features: int, device: torch.device
) -> Tensor:
    """Return the spectrogram's positions [P, D]: half of D for L, half for F.

    Each half has sine and cosine of ``p MAX_PERIOD ** (-2 i / (D / 2))`` in turn.
    """
    half = features // 2
    even = torch.arange(0, half, 2, device=device).float()
    rate = torch.exp(even * -(math.log(MAX_PERIOD) / half))

    def table(length: int) -> Tensor:
        angle = torch.arange(length, device=device).float()[:, None] * rate
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)

    time_LFD = table(frames)[:, None].expand(-1, frequencies, -1)
    freq_LFD = table(frequencies)[None].expand(frames, -1, -1)
    return torch.cat([time_LFD, freq_LFD], dim=-1).flatten(0, 1)


def pointwise(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """Apply a convolution of kernel 1 to channels-last input."""
    return linear(x, conv.weight.flatten(1), conv.bias)


class Linear(nn.Linear):
    """A linear layer that multiplies by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


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


# ---------------------------------------------------------------- the spectrum


def to_spectrum(wave_BCT: Tensor, nfft: int) -> Tensor:
    """Return the orthonormal STFT, complex numbers as channels: [B, 2 C, nfft / 2, L].

    A frame starts at every quarter of a frame, L = ceil(T / (nfft / 4)) of them, so
    that the layers' strides divide frequencies and the frames go with the samples. The
    highest frequency, nfft / 2, is left out.
    """
    hop = nfft // 4
    side = hop * 3 // 2
    frames = (wave_BCT.shape[-1] + hop - 1) // hop  # ONNX rounds towards 0
    wave_BCT = pad_reflecting(wave_BCT, side, side + frames * hop - wave_BCT.shape[-1])
    window = torch.hann_window(nfft, dtype=wave_BCT.dtype, device=wave_BCT.device)
    framed = wave_BCT.unfold(-1, nfft, hop) * window
    spectrum_BCLF = torch.fft.rfft(framed, norm="ortho")[..., :-1]
    parts = torch.view_as_real(spectrum_BCLF)
    return parts.permute(0, 1, 4, 3, 2).flatten(1, 2)


def to_waveform(spectrum_BZFL: Tensor, nfft: int, length: int) -> Tensor:
    """Return the inverse of `to_spectrum`, [B, Z / 2, length].

    As in demucs, the frames that would begin before the first one or after the last
    one count as zero: up to 3/8 of a frame at either end comes back quieter.
    """
    hop = nfft // 4
    side = hop * 3 // 2
    parts = spectrum_BZFL.unflatten(1, (-1, 2)).permute(0, 1, 4, 3, 2)
    # The missing highest frequency is zero; ONNX pads no complex numbers.
    parts = F.pad(parts, (0, 0, 0, 1)).contiguous()
    framed = torch.fft.irfft(torch.view_as_complex(parts), nfft, norm="ortho")
    window = torch.hann_window(nfft, dtype=framed.dtype, device=framed.device)
    # Four windows lie over every sample, and their squares add up to 3 / 2.
    quarters = (framed * (window / 1.5)).unflatten(-1, (4, hop))
    hops: Any = sum(F.pad(quarters[..., i, :], (0, 0, i, 3 - i)) for i in range(4))
    return hops.flatten(-2)[..., side : side + length]


def pad_reflecting(wave: Tensor, left: int, right: int) -> Tensor:
    """Pad by reflection; a wave that is too short for it is padded with zeros first."""
    missing = max(left, right) - wave.shape[-1] + 1
    if missing > 0:
        zeros_right = min(right, missing)
        zeros_left = missing - zeros_right
        wave = F.pad(wave, (zeros_left, zeros_right))
        left, right = left - zeros_left, right - zeros_right
    return F.pad(wave, (left, right), mode="reflect")


def normalise(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Standardise every example; returns the mean and the deviation as well."""
    over = tuple(range(1, x.dim()))
    mean = x.mean(over, keepdim=True)
    # A single value has no deviation: 0, where the usual estimate is NaN.
    std = x.std(over, correction=int(x[0].numel() > 1), keepdim=True)
    return (x - mean) / (1e-5 + std), mean, std


# ---------------------------------------------------------------- arguments


def seconds(value: Seconds) -> Fraction:
    """Return an exact length in seconds; a float counts as the decimal that it prints.

    A ValueError is raised unless it is a positive number or two integers.

    Example
    -------
    >>> seconds(7.8) == seconds((39, 5)) == seconds("39/5")
    True
    """
    try:
        if isinstance(value, (list, tuple)):
            numerator, denominator = value
            result = Fraction(numerator, denominator)
        else:
            result = Fraction(str(value))
    except (TypeError, ValueError, ZeroDivisionError):
        result = Fraction(0)
    if result <= 0:
        raise ValueError(
            f"segment_seconds={value!r}: must be a positive number of seconds, or two "
            "integers that divide to one"
        )
    return result


def _check_arguments(
    sources: Sequence[str],
    channels: int,
    depth: int,
    nfft: int,
    t_dropout: float,
    **integers: int,
) -> None:
    """Raise a ValueError that names the first argument that does not fit."""
    if (
        isinstance(sources, str)
        or not sources
        or not all(isinstance(name, str) and name for name in sources)
        or len(set(sources)) < len(sources)
    ):
        raise ValueError(f"sources={sources!r}: must be a list of different names")
    limits = {"channels": (channels, 1, None), "depth": (depth, 1, MAX_DEPTH)}
    limits["nfft"] = (nfft, 8, None)
    for name, value in integers.items():
        low = 0 if name in ("dconv_mode", "bottom_channels", "t_layers") else 1
        limits[name] = (value, low, 3 if name == "dconv_mode" else None)
    for name, (value, low, high) in limits.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < low or (high is not None and value > high):
            most = "" if high is None else f" and at most {high}"
            raise ValueError(
                f"{name}={value!r}: must be an integer of at least {low}{most}"
            )
    if not 0 <= t_dropout < 1:
        raise ValueError(f"t_dropout={t_dropout!r}: must be in [0, 1)")
    if nfft % (2 * STRIDE**depth) or nfft // 2 // STRIDE ** (depth - 1) <= KERNEL:
        raise ValueError(
            f"nfft={nfft}: {depth} levels need a multiple of {2 * STRIDE**depth} "
            f"above {2 * KERNEL * STRIDE ** (depth - 1)}"
        )
    if integers["dconv_mode"] and channels < integers["dconv_comp"]:
        raise ValueError(
            f"dconv_comp={integers['dconv_comp']}: exceeds {channels} channels"
        )
    bottom, heads = integers["bottom_channels"], integers["t_heads"]
    if bottom and not integers["t_layers"]:
        raise ValueError(f"bottom_channels={bottom}: no transformer")
    features = bottom or channels * integers["growth"] ** (depth - 1)
    if integers["t_layers"] and (features % heads or features % 4):
        raise ValueError(
            f"t_heads={heads}: the transformer's {features} features must be a "
            "multiple of it, and of 4"
        )
