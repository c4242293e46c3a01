"""SepReformer, asymmetric encoder and decoder on waveforms (Shin et al., NeurIPS 2024).

Encoder, stages at falling rates, split into sources, stages at rising rates where the
sources of an example attend to each other at every frame, decoder; no mask. Names of
parameters and arithmetic are those of the published weights (dmlguq456/SepReformer).
Here features stay last, relative positions are one product with the table of offsets,
and heads that only training needs may be left out.

Legend of the shape suffixes
    B batch, S source, X both in one, T sample, E feature of the encoder, D feature,
    L frame at the rate of a stage, N frame at the coarsest rate, H head, C feature of
    a head, R offset between two frames. Layers map [X, L, D] to the same.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

#: The reference's keys as arguments here, or their only value; SECTIONS before KEYS.
WIDE, KERNEL = "encoder_channels", "kernel_size"
KEYS: dict[str, object] = {"num_stages": "stages", "num_spks": "num_sources"}
KEYS |= {WIDE: WIDE, "encoder_kernel_size": KERNEL, "encoder_stride": "stride"}
KEYS |= {"channels": "channels", "in_channels": "channels", "out_channels": "channels"}
KEYS |= {"num_heads": "heads", "num_mha_heads": "heads", "maxlen": "max_offset"}
KEYS |= {"local_kernel_size": "local_taps", "dropout_rate": "dropout"}
KEYS |= {"samp_kernel_size": "down_taps", "num_channels": WIDE}
KEYS |= {"stride": "stride", "groups": 1, "bias": False, "embed_v": False}
SECTIONS: dict[str, dict[str, object]] = {
    "module_audio_enc": {"in_channels": 1, "out_channels": WIDE, KERNEL: KERNEL},
    "module_feature_projector": {"in_channels": WIDE, KERNEL: 1},
    "module_separator": {KERNEL: "local_taps"},
    "module_output_layer": {"in_channels": WIDE},
    "module_audio_dec": {"in_channels": WIDE, "out_channels": 1, KERNEL: KERNEL},
}
Sizes = tuple[int, int, int, float, int]  # features, heads, taps, dropout, sources


class SepReformer(nn.Module):
    """SepReformer: ``mixture_BT -> estimate_BST``.

    The defaults are the published size B (14.1 M parameters, 14.7 M with the heads for
    training); L has 256 channels, dropout 0.1. Norms run over the whole input, so batch
    only equal lengths. Other values and shapes are a ValueError.

    Arguments
    ---------
    num_sources, stages : int
        Sources S in the estimate; stages K on each side, which halve the rate.
    encoder_channels, kernel_size, stride : int
        Filters of encoder and decoder, their samples, and those between two.
    channels, heads : int
        Features in the stages, and heads of the attention, which divide them.
    max_offset, dropout : int, float
        Coarse frames apart from which on all positions are the same; in every block.
    local_taps, down_taps : int
        Taps of the convolutions in local blocks and between stages, odd.
    split_per_level, auxiliary_heads, activation_checkpointing : bool
        Split into sources by own weights at each rate, as published for WHAM!; have
        the heads for ``forward(..., auxiliary=True)``, which only training needs; keep
        only the input of each block and compute it again in the backward pass.

    Example
    -------
    >>> model = SepReformer(stages=1, encoder_channels=8, channels=8, heads=2)
    >>> model(torch.randn(2, 101)).shape
    torch.Size([2, 2, 101])
    """

    def __init__(
        self,
        num_sources: int = 2,
        stages: int = 4,
        encoder_channels: int = 256,
        kernel_size: int = 16,
        stride: int = 4,
        channels: int = 128,
        heads: int = 8,
        max_offset: int = 2000,
        local_taps: int = 65,
        down_taps: int = 5,
        dropout: float = 0.05,
        split_per_level: bool = False,
        auxiliary_heads: bool = False,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        counts = {"num_sources": num_sources, "stages": stages, "stride": stride}
        counts |= {WIDE: encoder_channels, KERNEL: kernel_size, "channels": channels}
        counts |= {"heads": heads, "max_offset": max_offset}
        counts |= {"local_taps": local_taps, "down_taps": down_taps}
        for name, value in counts.items():
            is_even = name.endswith("_taps") and value % 2 == 0
            if not isinstance(value, int) or value < 1 or is_even:
                raise ValueError(
                    f"SepReformer: {name}={value!r}: must be > 0, taps odd"
                )
        if channels % heads or stride > kernel_size or not 0.0 <= dropout < 1.0:
            raise ValueError(
                f"SepReformer: {channels=} must be a multiple of {heads=}, {stride=} "
                f"at most {kernel_size=}, and {dropout=} in [0, 1)"
            )
        self.num_sources, self.auxiliary_heads = num_sources, auxiliary_heads
        self.kernel_size, self.stride, self.stages = kernel_size, stride, stages
        self.config = {"stride": stride}  # leaves no trace in the shapes of the weights
        sizes = channels, heads, local_taps, dropout, num_sources
        recompute, down = activation_checkpointing, down_taps

        shape = encoder_channels, 1, kernel_size, stride
        wave = partial(nn.ConvTranspose1d, *shape, bias=False)
        last = partial(_out_layer, channels, encoder_channels)
        encoder = nn.Conv1d(1, encoder_channels, kernel_size, stride, bias=False)
        self.audio_encoder = nn.ModuleDict({"conv1d": encoder})
        norm = nn.GroupNorm(1, encoder_channels, eps=1e-8)
        narrow = nn.Conv1d(encoder_channels, channels, 1, bias=False)
        self.feature_projector = nn.ModuleDict({"norm": norm, "conv1d": narrow})
        net: Any = nn.Module()
        positions = nn.Embedding(2 * max_offset, channels // heads)
        net.pos_emb = nn.ModuleDict({"pe_k": positions})
        net.enc_stages = _repeat(stages, lambda: Stage(sizes, recompute, down=down))
        net.bottleneck_G = Stage(sizes, recompute)
        if split_per_level:
            net.spk_split_blocks = _repeat(stages + 1, lambda: Split(sizes))
        else:
            net.spk_split_block = Split(sizes)
        fusion = partial(nn.Conv1d, 2 * channels, channels, 1)
        net.simple_fusion = _repeat(stages, fusion)
        net.dec_stages = _repeat(stages, lambda: Stage(sizes, recompute, split=True))
        self.separator = net
        self.out_layer, self.audio_decoder = last(), wave()
        if auxiliary_heads:
            self.out_layer_bn = _repeat(stages, last)
            self.decoder_bn = _repeat(stages, wave)

    def forward(self, mixture_BT: Tensor, auxiliary: bool = False) -> Any:
        """Return ``estimate_BST``, as long as the mixtures, of one length T >= 1.

        With ``auxiliary`` return it and a list of such estimates, by the heads for
        training from the input of each stage of the decoder, the coarsest first.
        """
        if mixture_BT.dim() != 2 or mixture_BT.shape[-1] == 0:
            raise ValueError(f"SepReformer: shape {[*mixture_BT.shape]} is no [B, T]")
        if auxiliary and not self.auxiliary_heads:
            raise ValueError("SepReformer: auxiliary=True needs auxiliary_heads=True")
        beyond = self.kernel_size - mixture_BT.shape[-1]
        padded_BT = F.pad(mixture_BT, (0, max(beyond, beyond % self.stride)))
        encoded_BEL = F.gelu(self.audio_encoder["conv1d"](padded_BT.unsqueeze(1)))
        normed_BLE = self.feature_projector["norm"](encoded_BEL).mT
        x_BLD = _pointwise(self.feature_projector["conv1d"], normed_BLE)
        frames = x_BLD.shape[1]
        inputs, x_XLD = self._stages(F.pad(x_BLD, (0, 0, 0, -frames % 2**self.stages)))

        def wave(features_XLE: Tensor, decoder: Any) -> Tensor:
            wave_XT = decoder(features_XLE.mT)[:, 0, : mixture_BT.shape[-1]]
            wave_BST = wave_XT.unflatten(0, (-1, self.num_sources))
            return wave_BST.to(mixture_BT.dtype)

        features_XLE = self.out_layer["end_conv1x1"](x_XLD[:, :frames])
        estimate_BST = wave(features_XLE, self.audio_decoder)
        if not auxiliary:
            return estimate_BST
        others = []
        e_XLE = encoded_BEL.mT.repeat_interleave(self.num_sources, dim=0)
        heads: Any = zip(inputs, self.out_layer_bn, self.decoder_bn, strict=True)
        for x_XLD, last, decoder in heads:
            mask_XLE = F.relu(last["end_conv1x1"](F.interpolate(x_XLD.mT, frames).mT))
            others.append(wave(mask_XLE * e_XLE, decoder))
        return estimate_BST, others

    def _stages(self, x_BLD: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the inputs of the decoder's stages and the output of the last."""
        net: Any = self.separator
        coarse = x_BLD.shape[1] // 2**self.stages
        positions = net.pos_emb["pe_k"]
        limit = positions.num_embeddings // 2
        offset_R = torch.arange(coarse, -coarse, -1, device=x_BLD.device)
        table_RC = positions(offset_R.clamp(-limit, limit - 1) + limit)
        skips = []
        for stage in net.enc_stages:
            skips.append(stage(x_BLD, table_RC))
            x_BLD = stage.halve(skips[-1])
        x_BLD = net.bottleneck_G(x_BLD, table_RC)
        shared = getattr(net, "spk_split_block", None)
        splits = list(net.spk_split_blocks) if shared is None else [shared]
        x_XLD = splits[-1](x_BLD)
        inputs = []
        for fusion, stage in zip(net.simple_fusion, net.dec_stages, strict=True):
            inputs.append(x_XLD)
            skip_XLD = splits[len(skips) - 1 if shared is None else 0](skips.pop())
            wide_XLD = x_XLD.repeat_interleave(2, dim=1)
            x_XLD = _pointwise(fusion, torch.cat([wide_XLD, skip_XLD], dim=-1))
            x_XLD = stage(x_XLD, table_RC)
        return inputs, x_XLD

    @staticmethod
    def from_config(config: Mapping[str, Any], **arguments: Any) -> "SepReformer":
        """Build the network that a configuration of the reference describes.

        ``config`` is the reference's constructor tree, alone or as ``model`` below
        ``config`` in its YAML, or the tree's flat form. ``arguments`` of this class
        come before it; ``split_per_level`` is in no configuration. There are auxiliary
        heads, as there. What is unknown, and parts that differ, are a ValueError.
        """
        for section in ("config", "model"):
            config = config.get(section, config)
        known: dict[str, Any] = {}
        for section, key, value in _leaves(config):
            names = KEYS | SECTIONS.get(section, {})
            if key not in names:
                raise ValueError(f"SepReformer: unknown key {section} {key}")
            name = names[key]
            only = known.setdefault(name, value) if isinstance(name, str) else name
            if value != only:
                raise ValueError(f"SepReformer: {section} {key} is {value}, not {only}")
        return SepReformer(**{"auxiliary_heads": True, **known, **arguments})

    def adapt_keys(self, state: dict[str, Any]) -> dict[str, Tensor]:
        """Return the weights in the reference's checkpoint, without unwanted heads."""
        state = state.get("model_state_dict", state)
        unused = () if self.auxiliary_heads else ("out_layer_bn.", "decoder_bn.")
        return {k: value for k, value in state.items() if not k.startswith(unused)}


class Stage(nn.Module):
    """Global and local blocks in turn; of sources, also attention between them."""

    def __init__(self, sizes: Sizes, redo: bool, split: bool = False, down: int = 0):
        super().__init__()
        self.recompute, width = redo, sizes[0]
        for number in range(1, 4 if split else 3):
            self.add_module(f"g_block_{number}", Block(sizes, ega=EGA(sizes)))
            self.add_module(f"l_block_{number}", Block(sizes, cla=CLA(sizes)))
            if split:
                self.add_module(f"spk_attn_{number}", SourceAttention(sizes))
        self.number = len(self._modules)
        if down:
            conv = nn.Conv1d(width, width, down, 2, down // 2, groups=width)
            norm = nn.BatchNorm1d(width)
            self.downconv: Any = nn.ModuleDict({"down_conv": conv, "BN": norm})

    def forward(self, x_XLD: Tensor, table_RC: Tensor) -> Tensor:
        for block in list(self.children())[: self.number]:
            if not (self.recompute and torch.is_grad_enabled()):
                x_XLD = block(x_XLD, table_RC)
                continue
            options: dict[str, Any] = {"use_reentrant": False}
            if not torch.compiler.is_compiling():  # where a second run updates nothing
                contexts = nullcontext(), _on_copies(block)
                options["context_fn"] = lambda contexts=contexts: contexts
            x_XLD = checkpoint(block, x_XLD, table_RC, **options)
        return x_XLD

    def halve(self, x_BLD: Tensor) -> Tensor:
        x_BLD = self.downconv["down_conv"](x_BLD.mT).mT
        return F.gelu(_normalised(self.downconv["BN"], x_BLD))


class Block(nn.Module):
    """EGA or CLA, then a GCFN."""

    def __init__(self, sizes: Sizes, **mixer: nn.Module) -> None:
        super().__init__()
        self.block = nn.ModuleDict({**mixer, "gcfn": GCFN(sizes)})

    def forward(self, x_XLD: Tensor, table_RC: Tensor) -> Tensor:
        for layer in self.block.values():
            x_XLD = layer(x_XLD, table_RC)
        return x_XLD


class EGA(nn.Module):
    """Attention over the coarsest frames, gated at the finer ones."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes[0]
        gate = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.block = nn.ModuleDict({"self_attn": Attention(sizes), "linear": gate})

    def forward(self, x_XLD: Tensor, table_RC: Tensor) -> Tensor:
        step = x_XLD.shape[1] // (table_RC.shape[0] // 2)
        coarse_XND = x_XLD.unflatten(1, (-1, step)).mean(2)
        seen_XND = self.block["self_attn"](coarse_XND, table_RC)
        gate_XLD = torch.sigmoid(self.block["linear"](x_XLD))
        return x_XLD + gate_XLD * seen_XND.repeat_interleave(step, dim=1)


class SourceAttention(nn.Module):
    """Attention between the sources of an example at each frame, then a GCFN."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.self_attn, self.feed_forward = Attention(sizes), GCFN(sizes)
        self.sources = sizes[-1]

    def forward(self, x_XLD: Tensor, table_RC: Tensor) -> Tensor:
        seen_BSLD = self.self_attn.across(x_XLD.unflatten(0, (-1, self.sources)))
        return self.feed_forward(x_XLD + seen_BSLD.flatten(0, 1), table_RC)


class Attention(nn.Module):
    """Multi-head attention on normalised input; the caller adds the residual."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, self.heads, _, self.dropout, _ = sizes
        self.layer_norm = nn.LayerNorm(width)
        self.linear_q, self.linear_k, self.linear_v, self.linear_out = (
            nn.Linear(width, width) for _ in range(4)
        )
        self.Layer_scale = _layer_scale(width)

    def forward(self, x_XND: Tensor, table_RC: Tensor) -> Tensor:
        frames = x_XND.shape[1]
        q, k, v = (part.transpose(1, 2) for part in self._project(x_XND))
        # Row i of [N, 2 N] has the offset i - j in column N - i + j: without the first
        # N entries, rows that are one shorter begin where j = 0.
        bias_XHNR = q @ (table_RC * table_RC.shape[1] ** -0.5).to(q.dtype).t()
        shorter = bias_XHNR.flatten(-2)[..., frames:].unflatten(-1, (frames, -1))
        bias, dropout = shorter[..., :frames], self.dropout if self.training else 0.0
        seen_XHNC = F.scaled_dot_product_attention(q, k, v, bias, dropout)
        return self._merge(seen_XHNC.transpose(1, 2))

    def across(self, x_BSLD: Tensor) -> Tensor:
        """Attend along S, by hand: kernels are made for long sequences."""
        q, k, v = self._project(x_BSLD)
        score_BSSLH = (q.unsqueeze(2) * k.unsqueeze(1)).sum(-1) * q.shape[-1] ** -0.5
        weight_BSSLH = F.dropout(score_BSSLH.softmax(2), self.dropout, self.training)
        return self._merge((weight_BSSLH.unsqueeze(-1) * v.unsqueeze(1)).sum(2))

    def _project(self, x: Tensor) -> list[Tensor]:
        x = self.layer_norm(x)
        layers = self.linear_q, self.linear_k, self.linear_v
        return [layer(x).unflatten(-1, (self.heads, -1)) for layer in layers]

    def _merge(self, x: Tensor) -> Tensor:
        y = F.dropout(self.linear_out(x.flatten(-2)), self.dropout, self.training)
        return y * self.Layer_scale["layer_scale"]


class GCFN(nn.Module):
    """Gated feed-forward layer with a depthwise convolution of three frames."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, _, _, dropout, _ = sizes
        wide = 6 * width
        self.net1 = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, wide))
        self.depthwise = nn.Conv1d(wide, wide, 3, padding=1, groups=wide)
        last, drop = nn.Linear(wide // 2, width), nn.Dropout(dropout)
        self.net2 = nn.Sequential(nn.GLU(), drop, last, drop)
        self.Layer_scale = _layer_scale(width)

    def forward(self, x_XLD: Tensor, _: Tensor) -> Tensor:
        conv, image = self.depthwise, self.net1(x_XLD).mT.unsqueeze(2)  # no copies
        weight, bias, groups = conv.weight.unsqueeze(2), conv.bias, conv.groups
        y_XLD = F.conv2d(image, weight, bias, 1, (0, 1), 1, groups).squeeze(2).mT
        return x_XLD + self.net2(y_XLD) * self.Layer_scale["layer_scale"]


class CLA(nn.Module):
    """Convolutional layer: gated input, long depthwise convolution, BatchNorm."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, _, taps, dropout, _ = sizes
        self.layer_norm = nn.LayerNorm(width)
        self.linear1, self.linear2 = (nn.Linear(width, 2 * width) for _ in range(2))
        self.dw_conv_1d = nn.Conv1d(width, width, taps, padding="same", groups=width)
        self.BN = nn.BatchNorm1d(2 * width)
        last, drop = nn.Linear(2 * width, width), nn.Dropout(dropout)
        self.linear3 = nn.Sequential(nn.GELU(), last, drop)
        self.Layer_scale = _layer_scale(width)

    def forward(self, x_XLD: Tensor, _: Tensor) -> Tensor:
        y_XLD = F.glu(self.linear1(self.layer_norm(x_XLD)))
        y_XLD = self.linear2(self.dw_conv_1d(y_XLD.mT).mT)
        y_XLD = self.linear3(_normalised(self.BN, y_XLD))
        return x_XLD + y_XLD * self.Layer_scale["layer_scale"]


class Split(nn.Module):
    """Turn the features of a mixture into those of its sources."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, *_, self.sources = sizes
        all_ = width * self.sources
        first, last = nn.Conv1d(width, 4 * all_, 1), nn.Conv1d(2 * all_, all_, 1)
        self.linear: Any = nn.Sequential(first, nn.GLU(), last)
        self.norm = nn.GroupNorm(1, width, eps=1e-8)

    def forward(self, x_BLD: Tensor) -> Tensor:
        y_BLZ = self.linear[1](_pointwise(self.linear[0], x_BLD))
        y_BLSD = _pointwise(self.linear[2], y_BLZ).unflatten(-1, (self.sources, -1))
        return self.norm(y_BLSD.permute(0, 2, 3, 1).flatten(0, 1)).mT


def _out_layer(width: int, encoder_channels: int) -> nn.ModuleDict:
    first, last = nn.Linear(width, 4 * width), nn.Linear(2 * width, encoder_channels)
    return nn.ModuleDict({"end_conv1x1": nn.Sequential(first, nn.GLU(), last)})


def _layer_scale(width: int) -> nn.ParameterDict:
    return nn.ParameterDict({"layer_scale": torch.full((1, 1, width), 1e-5)})


def _repeat(number: int, make: Callable[[], nn.Module]) -> nn.ModuleList:
    return nn.ModuleList(make() for _ in range(number))


def _pointwise(conv: Any, x_XLD: Tensor) -> Tensor:
    """Apply a convolution of one frame as the matrix that it is."""
    return F.linear(x_XLD, conv.weight.squeeze(-1), conv.bias)


def _normalised(norm: Any, x_XLD: Tensor) -> Tensor:
    """Apply BatchNorm to the features of all frames."""
    rows = x_XLD.flatten(0, 1)
    if norm.training and len(rows) == 1:  # one value has no variance
        learnt = norm.running_mean, norm.running_var, norm.weight, norm.bias
        return F.batch_norm(rows, *learnt, eps=norm.eps).view_as(x_XLD)
    return norm(rows).view_as(x_XLD)


@contextmanager
def _on_copies(block: nn.Module) -> Iterator[None]:
    """Let a block update copies of its running statistics."""
    kept = [(layer._buffers, dict(layer._buffers)) for layer in block.modules()]
    for buffers, before in kept:
        buffers.update({k: v if v is None else v.clone() for k, v in before.items()})
    try:
        yield
    finally:
        for buffers, before in kept:
            buffers.update(before)


def _leaves(tree: Mapping[str, Any], section: str = "") -> Iterator[tuple]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, section or key)
        else:
            yield section, key, value
