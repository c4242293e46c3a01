"""What is heard in a stem, whatever its label: judged without any separator.

A small network learns, from the labels as they are, which sources are heard in a second
of audio. It hears sums of seconds of several sources, so that it knows mixtures too. A
track is judged by networks that learnt from other tracks alone (confident learning,
Northcutt et al., JAIR 2021; instrument recognition on wrong labels, Koo et al., arXiv
2307.12576), so that a wrong label cannot be learnt by heart.

Legend: C channel, T sample, W window, L frame, M mel band, S source, N example,
F frequency or feature, P point or cell.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import Tensor, nn
from tqdm import tqdm

from modules.data.labels import Key

RATE, FFT, HOP, BANDS = 22050, 1024, 512, 40
SECONDS = 1.0  # of a window
MOST_WINDOWS = 40  # of a stem
QUIETEST = 1e-4  # power of a window that counts, of that of the stem's loud ones
FOLDS, EXAMPLES, EPOCHS, BATCH, HIDDEN = 5, 6144, 6, 128, 64
DROPOUT, WEIGHT_DECAY = 0.4, 0.1
BLEED_BANDS = 8  # equally wide in octaves
CURVES, CURVE_DB = 5, 3.0  # random equalisation: points over the bands, their spread
SHARES = (0.5, 0.35, 0.15)  # of training examples with one, two and three sources


def spectrum(wave_CT: Tensor) -> Tensor:
    """Return the short-time spectrum of a wave at `RATE`, [C, F, L]."""
    window = torch.hann_window(FFT)
    wave_CT = F.pad(wave_CT, (0, max(0, FFT - wave_CT.shape[1])))
    return torch.stft(wave_CT, FFT, HOP, window=window, return_complex=True)


def cut_windows(wave_CT: Tensor) -> Tensor:
    """Return mel powers [W, L, M] of the windows of a wave that are not silent."""
    bank = AF.melscale_fbanks(FFT // 2 + 1, 30.0, RATE / 2, BANDS, RATE)
    mel_LM = spectrum(wave_CT).abs().square().mean(0).T @ bank
    frames = round(SECONDS * RATE / HOP)
    whole = len(mel_LM) // frames
    power_WLM = mel_LM[: whole * frames].reshape(whole, frames, BANDS)
    level_W = power_WLM.mean((1, 2))
    if not whole or not level_W.any():
        return power_WLM[:0]
    power_WLM = power_WLM[level_W > QUIETEST * level_W.quantile(0.9)]
    count = min(len(power_WLM), MOST_WINDOWS)
    return power_WLM[torch.linspace(0, len(power_WLM) - 1, count).long()]


def bleed_db(stem_SCT: Tensor) -> list[float]:
    """Return how much of each stem another stem of the track explains, in dB.

    Where one stem is 10 dB above another, what the weaker holds in phase with it may
    have bled into it. Notes in unison are in phase too, here and there, and bleed is
    everywhere: the gain is the median over cells of a band and a second each. Nothing
    bleeds below -90 dB.
    """
    spectra = [spectrum(wave_CT) for wave_CT in stem_SCT]
    power_S = [one.abs().square() for one in spectra]
    bins, frames = spectra[0].shape[1:]
    band_F = (torch.arange(bins) + 4).log2().mul(BLEED_BANDS / 9).long()
    time_L = torch.arange(frames) * HOP // RATE
    cell_P = (band_F[:, None] * (frames * HOP // RATE + 1) + time_L).flatten()

    def of_cells(power_CFL: Tensor) -> Tensor:
        power_P = power_CFL.sum(0).flatten()
        return torch.zeros(len(cell_P)).index_add_(0, cell_P, power_P)

    found = []
    for weak, own in zip(spectra, power_S, strict=True):
        share = 1e-9
        for strong, other in zip(spectra, power_S, strict=True):
            covers = other > 10 * own
            common = of_cells((weak * strong.conj()).real * covers)
            under = of_cells(other * covers)
            known = under > 1e-5 * under.max()
            if own.any() and known.any():
                gain, order = (common / under)[known].sort()
                weight = under[known][order].sqrt().cumsum(0)
                median = gain[weight >= weight[-1] / 2][0].clamp(min=0)
                share = max(share, float(median**2 * other.sum() / own.sum()))
        found.append(10 * math.log10(share))
    return found


def texture(power_NLM: Tensor) -> Tensor:
    """Return mean, spread and movement of each band's level in dB: [N, F]."""
    mean_N11 = power_NLM.mean((1, 2), keepdim=True)
    level_NLM = 10 * torch.log10(power_NLM / mean_N11.clamp(min=1e-20) + 1e-5)
    moves_NM = level_NLM.diff(dim=1).abs().mean(1)
    return torch.cat([level_NLM.mean(1), level_NLM.std(1), moves_NM], dim=1)


def hear(
    stems: Mapping[Key, Tensor], sources: Sequence[str], seed: int = 0
) -> dict[Key, dict[str, float]]:
    """Return how probably each source is heard in a stem, the mean over its windows.

    `stems` are the windows by track and label; a stem without any gets no judgement,
    nor does one whose track no other that sounds can judge.
    """
    tracks = sorted({track for track, _ in stems})
    folds = min(FOLDS, len(tracks)) if len(tracks) > FOLDS * 4 else len(tracks)
    found: dict[Key, dict[str, float]] = {}
    for fold in tqdm(range(folds if folds > 1 else 0), desc="content"):
        judged = set(tracks[fold::folds])
        pools = [
            [x for (t, s), x in stems.items() if s == name and t not in judged]
            for name in sources
        ]
        if not any(len(x) for pool in pools for x in pool):
            continue  # the others are silent
        network = learn([torch.cat(pool) for pool in pools], seed + fold)
        for key, power_WLM in stems.items():
            if key[0] in judged and len(power_WLM):
                heard_S = network(power_WLM).sigmoid().mean(0).tolist()
                found[key] = dict(zip(sources, heard_S, strict=True))
    return found


def learn(pools: Sequence[Tensor], seed: int) -> Callable[[Tensor], Tensor]:
    """Train a network on windows by source; it maps windows [N, L, M] to logits [N, S].

    A source without windows is never heard.
    """
    generator = torch.Generator().manual_seed(seed)
    example_NF, is_heard_NS = mixed(pools, EXAMPLES, generator)
    mean_F, spread_F = example_NF.mean(0), example_NF.std(0) + 1e-3
    example_NF = (example_NF - mean_F) / spread_F
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(len(mean_F), HIDDEN),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(HIDDEN, len(pools)),
        )
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
        steps = EPOCHS * math.ceil(len(example_NF) / BATCH)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, steps)
        for _ in range(EPOCHS):
            for part in torch.randperm(len(example_NF)).split(BATCH):
                logit_NS = network(example_NF[part])
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(
                    logit_NS, is_heard_NS[part]
                ).backward()
                optimizer.step()
                rate.step()
    network.eval()

    @torch.no_grad()
    def judge(power_NLM: Tensor) -> Tensor:
        return network((texture(power_NLM) - mean_F) / spread_F)

    return judge


def mixed(
    pools: Sequence[Tensor], count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Add up windows of one to three sources: textures [N, F], what is heard [N, S].

    Each other is from 20 dB below to 10 dB above the first. All are equalised at
    random: no two songs sound alike.
    """
    known = [number for number, pool in enumerate(pools) if len(pool)]
    shares = torch.tensor(SHARES[: len(known)])
    order_NS = torch.rand(count, len(known), generator=generator).argsort(1)
    number_N = 1 + torch.multinomial(shares, count, True, generator=generator)
    power_NLM = torch.zeros(count, *pools[0].shape[1:])
    is_heard_NS = torch.zeros(count, len(pools))
    for place in range(len(shares)):
        decibel_N = 30 * torch.rand(count, generator=generator) - 20
        gain_N = 10 ** (decibel_N / 10) if place else torch.ones(count)
        for number, source in enumerate(known):
            chosen_N = (order_NS[:, place] == number) & (number_N > place)
            shape = (int(chosen_N.sum()),)
            pick = torch.randint(len(pools[source]), shape, generator=generator)
            own_NLM = pools[source][pick] * curves(len(pick), generator)
            own_NLM *= (gain_N[chosen_N] / own_NLM.mean((1, 2)))[:, None, None]
            power_NLM[chosen_N] += own_NLM
            is_heard_NS[chosen_N, source] = 1
    return texture(power_NLM), is_heard_NS


def curves(count: int, generator: torch.Generator) -> Tensor:
    """Return smooth random gains over the mel bands, [N, 1, M]."""
    decibel_N1P = CURVE_DB * torch.randn(count, 1, CURVES, generator=generator)
    decibel_N1M = F.interpolate(decibel_N1P, BANDS, mode="linear", align_corners=True)
    return 10 ** (decibel_N1M / 10)


def suspects(
    heard: Mapping[Key, Mapping[str, float]], sources: Sequence[str]
) -> tuple[dict[Key, float], dict[Key, str]]:
    """Return how suspect each stem is by what is heard, in logits, and what is in it.

    A stem is suspect if another source is heard in it, if its own is heard in another
    stem of its track, from which it is missing then, or if its own is not heard at all.
    What is in it is named where it is more probable than not.
    """
    found: dict[Key, float] = {}
    sounds_like: dict[Key, str] = {}
    for (track, stem), own in heard.items():
        others = [name for name in sources if name != stem]
        loudest = max(others, key=lambda name: own[name])
        elsewhere = [heard[track, s][stem] for s in others if (track, s) in heard]
        moved_out, absent = max(elsewhere, default=0.0), 1 - own[stem]
        chances = (own[loudest], 1.0), (moved_out, 0.8), (absent, 0.5)
        found[track, stem] = max(weight * logit(p) for p, weight in chances)
        sounds_like[track, stem] = loudest if own[loudest] > 0.5 else ""
    return found, sounds_like


def logit(probability: float) -> float:
    """Return the log of the odds, of a probability within 0.001 and 0.999."""
    probability = min(max(probability, 1e-3), 1 - 1e-3)
    return math.log(probability / (1 - probability))
