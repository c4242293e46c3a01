"""A loss that the packages do not know: the absolute error of the waveforms.

SI-SNR does not see how loud an estimate is; this loss does.

Legend: B batch, S source, T sample.
"""

from speechbrain import Stage
from torch import Tensor

from modules.data.batch import Batch
from modules.losses.choice import Terms
from modules.losses.si_snr import pit_neg_si_snr, reorder
from recipes.speech import SpeechSeparation


class WaveformSeparation(SpeechSeparation):
    """Train on the absolute error, under the order of talkers with the best SI-SNR."""

    def compute_objectives(
        self, predictions: Tensor, batch: Batch, stage: Stage
    ) -> Terms:
        """Return a loss for each example, [B, 1], and what else a choice needs."""
        found = pit_neg_si_snr(predictions, batch.src, batch.length_B)
        est_BST = reorder(predictions.float(), found.permutation_BS)
        error_B = (est_BST - batch.src).abs().mean((1, 2))
        return Terms(
            loss_BK=error_B[:, None],
            scorable_BK=found.active_BS.any(1, keepdim=True),
            # What `--threshold` compares stays in dB.
            sort_key_BK=found.loss_B[:, None],
            silent_BK=~found.active_BS.all(1, keepdim=True),
        )
