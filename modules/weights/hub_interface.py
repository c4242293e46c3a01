"""The end of every `custom.py`: how SpeechBrain runs the network above it.

`modules/weights/speechbrain_files.py` puts this file after a network's own, without
this docstring.
"""

import itertools
import sys
import types

import torch
import torchaudio
from speechbrain.dataio import audio_io
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.data_utils import split_path
from speechbrain.utils.fetching import fetch
from torch import Tensor


class CustomInterface(Pretrained):
    """Separates audio at its true level, in chunks, so that any length fits.

    As in SpeechBrain's interfaces the sources are the last dimension: mixtures [B, T]
    of speech give [B, T, S], and [B, C, T] of music give [B, C, T, S].

        model = foreign_class("FOLDER")  # of speechbrain.inference.interfaces
        estimates = model.separate_file("mixture.wav")
    """

    MODULES_NEEDED = ["separator"]
    HPARAMS_NEEDED = ["sample_rate", "chunk_samples", "audio_channels"]

    @torch.no_grad()
    def separate_batch(self, mix: Tensor) -> Tensor:
        """Separate mixtures at the model's rate; estimates are where the mixtures are.

        `audio_channels` is null for networks of speech, which take no channels.
        """
        is_music = self.hparams.audio_channels is not None
        estimates = self._music(mix) if is_music else self._speech(mix)
        return estimates.movedim(1, -1)

    forward = separate_batch

    def separate_file(self, path: str, savedir: str | None = None) -> Tensor:
        """Separate a file, resampled to the model's rate and in as many channels."""
        source, name = split_path(path)
        wave_CT, rate = audio_io.load(str(fetch(name, source=source, savedir=savedir)))
        if rate != self.hparams.sample_rate:
            resample = torchaudio.transforms.Resample(rate, self.hparams.sample_rate)
            wave_CT = resample(wave_CT)
        channels = self.hparams.audio_channels
        if len(wave_CT) != channels:
            wave_CT = wave_CT.mean(0, keepdim=True).expand(channels or 1, -1)
        return self.separate_batch(wave_CT if channels is None else wave_CT[None])

    def _network(self, mix: Tensor) -> Tensor:
        return self.mods.separator(mix.to(self.device)).to(mix.device)

    def _speech(self, mix_BT: Tensor) -> Tensor:
        """Join chunks by a cross-fade, each in the order of those before it."""
        samples, chunk = mix_BT.shape[-1], self.hparams.chunk_samples
        if samples <= chunk:
            return self._network(mix_BT)
        last, stop = samples - chunk, 0
        for start in [*range(0, last, chunk - round(chunk / 4)), last]:
            new_BSt = self._network(mix_BT[:, start : start + chunk])
            if not stop:
                est_BST = new_BSt.new_empty(*new_BSt.shape[:2], samples)
            elif (shared := stop - start) > 0:
                old_BSt = est_BST[..., start:stop]
                new_BSt = self._in_order_of(old_BSt, new_BSt)
                fade_t = torch.arange(1, shared + 1, device=mix_BT.device)
                fade_t = fade_t / (shared + 1)
                new_BSt[..., :shared] = old_BSt.lerp(new_BSt[..., :shared], fade_t)
            est_BST[..., start : start + chunk] = new_BSt
            stop = start + chunk
        return est_BST

    @staticmethod
    def _in_order_of(old_BSt: Tensor, new_BSt: Tensor) -> Tensor:
        """Reorder new sources by their products with the old ones where both are."""
        sources = range(new_BSt.shape[1])
        near_BSt = new_BSt[..., : old_BSt.shape[-1]]
        agreement_BSS = torch.einsum("bit,bjt->bij", near_BSt, old_BSt)
        orders = list(itertools.permutations(sources))
        totals = [agreement_BSS[:, order, sources].sum(-1) for order in orders]
        best = torch.stack(totals).argmax(0).tolist()
        return torch.stack(
            [est[list(orders[k])] for est, k in zip(new_BSt, best, strict=True)]
        )

    def _music(self, mix_BCT: Tensor) -> Tensor:
        """Average segments with triangular weights; songs are standardised for it."""
        mean_B11 = mix_BCT.mean((1, 2), keepdim=True)
        centred_BCT = mix_BCT - mean_B11
        mono_B11 = centred_BCT.mean(1, keepdim=True).square().sum(-1, keepdim=True)
        # Channels that cancel have no mean: a level that any layout bears.
        power_B11 = centred_BCT.square().mean(1, keepdim=True).sum(-1, keepdim=True)
        level_B11 = mono_B11.maximum(power_B11 / 4) / max(mix_BCT.shape[-1] - 1, 1)
        std_B11 = 1e-8 + level_B11.sqrt()
        song_BCT = centred_BCT / std_B11
        samples, length = mix_BCT.shape[-1], self.hparams.chunk_samples
        ramp = torch.arange(1, length + 1, device=mix_BCT.device)
        weight_t = torch.minimum(ramp, ramp.flip(0)).float()
        total_T = weight_t.new_zeros(samples)
        for start in range(0, samples, int(0.75 * length)):
            count = min(length, samples - start)
            before = (length - count) // 2  # a short one has the song around it
            first = start - before
            segment_BCt = song_BCT[..., max(0, first) : first + length]
            ends = max(0, -first), max(0, first + length - samples)
            new_BSCt = self._network(torch.nn.functional.pad(segment_BCt, ends))
            new_BSCt = new_BSCt[..., before : before + count]
            if not start:
                est_BSCT = new_BSCt.new_zeros(*new_BSCt.shape[:3], samples)
            est_BSCT[..., start : start + count] += weight_t[:count] * new_BSCt
            total_T[start : start + count] += weight_t[:count]
        return est_BSCT / total_T * std_B11[:, None] + mean_B11[:, None]


# The YAML asks for `custom.NAME`: that must be this file, also beside another model's.
sys.modules[__name__] = types.ModuleType(__name__)
sys.modules[__name__].__dict__.update(globals())
