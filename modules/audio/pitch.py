"""Change of pitch and of tempo, each without the other.

Signalsmith Stretch does it through `python-stretch`: MIT, a 0.1 MB wheel, and it takes
a seed, so that equal input gives equal output. pedalboard and pylibrb wrap Rubber Band,
which is GPL (and 5 times slower); demucs and CCOM start an external program for each
segment; the phase vocoders of torchaudio and librosa smear drums.

Legend: C channel, T sample.
"""

import torch
from torch import Tensor

# One generator for all calls: what it decides is inaudible.
SEED = 0


def change_pitch_and_tempo(
    wave_CT: Tensor, sample_rate: int, semitones: float = 0.0, tempo: float = 1.0
) -> Tensor:
    """Play [C, T] higher or lower, faster or slower: [C, round(T / tempo)].

    What sounded at t seconds sounds at t / tempo; 12 semitones double every frequency.
    The wave is float32 and on the CPU. A ValueError is raised for a tempo outside 0.25
    to 4 or a pitch beyond two octaves.
    """
    if not (0.25 <= tempo <= 4 and abs(semitones) <= 24):
        raise ValueError(
            f"tempo={tempo} and semitones={semitones}: expected 0.25 to 4 and -24 to 24"
        )
    if semitones == 0 and tempo == 1:
        return wave_CT
    # Imported here, because speech does not need it.
    from python_stretch import Signalsmith

    stretch = Signalsmith.Stretch(SEED)
    stretch.preset(len(wave_CT), sample_rate)
    stretch.setTransposeSemitones(semitones)
    stretch.setTimeFactor(tempo)
    changed_CT = torch.from_numpy(stretch.process(wave_CT.contiguous().numpy()))
    missing = round(wave_CT.shape[-1] / tempo) - changed_CT.shape[-1]
    return torch.nn.functional.pad(changed_CT, (0, missing))  # at most a sample
