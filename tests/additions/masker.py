"""A network that the packages do not know: a mask per source on learned features.

Legend: B batch, S source, C channel, F frame, T sample.
"""

import torch
from torch import Tensor, nn


class Masker(nn.Module):
    """Encoder, one mask per source, decoder.

    Arguments
    ---------
    num_sources : int
        Number of talkers.
    channels, kernel_size : int
        Size of the learned filterbank; its hop is half of the kernel.
    """

    def __init__(
        self, num_sources: int, channels: int = 16, kernel_size: int = 16
    ) -> None:
        super().__init__()
        self.num_sources, self.hop = num_sources, kernel_size // 2
        self.encoder = nn.Conv1d(1, channels, kernel_size, stride=self.hop)
        self.masks = nn.Conv1d(channels, num_sources * channels, 1)
        self.decoder = nn.ConvTranspose1d(channels, 1, kernel_size, stride=self.hop)

    def forward(self, mixture_BT: Tensor) -> Tensor:
        """Separate the mixtures: [B, T] to [B, S, T]."""
        length = mixture_BT.shape[1]
        padding = self.hop + -length % self.hop
        padded_BT = nn.functional.pad(mixture_BT, (self.hop, padding))
        features_BCF = torch.relu(self.encoder(padded_BT[:, None]))
        masks_BXF = torch.sigmoid(self.masks(features_BCF))
        masked_BSCF = features_BCF[:, None] * masks_BXF.unflatten(
            1, (self.num_sources, -1)
        )
        est_XT = self.decoder(masked_BSCF.flatten(0, 1))[:, 0]
        est_BST = est_XT.unflatten(0, (-1, self.num_sources))
        return est_BST[..., self.hop : self.hop + length]
