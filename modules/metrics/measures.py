"""The metrics by name: how each is written, its unit, and how it is computed.

`SPEECH` and `MUSIC` hold what the setting `metrics` may name; the printed table, the
page and the model card take names and units from here. Higher is better for all. Music
has two scores that are both called SDR, of the target as it is, with no filter:

- `nsdr`, that of the Sound Demixing Challenge: one ratio over the whole song, then the
  mean over songs;
- `sdr`, that of MUSDB18's results: BSS Eval version 4 as `museval` 0.4.1 computes it,
  the median over frames of a second, then the median over songs. Its filters enter
  only into ISR, SIR and SAR, so `framewise_sdr` agrees with it to the last digit, in a
  hundredth of the time and without its dependencies (pandas, musdb, ffmpeg).

A measure takes estimates, targets (none of them silent), the mixture, all in float64,
and the rate in Hz. It returns a number for each source, or None where it says nothing;
samples that are not finite are its caller's business.

Shapes: S source, C channel, T sample, F frequency, L frame, M mel band.
"""

import functools
import importlib.util
import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import fast_bss_eval
import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from modules.losses.si_snr import pit_neg_si_snr
from modules.losses.stems import neg_log_wmse
from modules.runtime.errors import HparamsError

SDR_TAPS = 512
SDR_RANGE_DB = 100.0  # as for SI-SNR; a perfect estimate would score infinity
NSDR_EPS = 1e-7  # the challenge adds it to both energies, for the same reason

#: ITU-T P.862 is made for sentences; its code overruns its memory at 50 utterances.
LONGEST_PESQ = 20  # seconds

Values = Sequence[float | None]


class Metric(NamedTuple):
    """How a metric is written, its unit, and its measure (see the top of the file)."""

    title: str
    unit: str  # empty where it has none
    measure: Callable[[Tensor, Tensor, Tensor, int], Values]
    package: str = ""  # that it needs besides requirements.txt
    rates: tuple[int, ...] = ()  # that it is defined for; empty: all
    lacking: str = ""  # why a source that is not silent may have no score


def _ratio_db(signal_S: Tensor, noise_S: Tensor) -> list[float]:
    """Return the ratio within [-100, 100] dB; of nothing to nothing it is the least."""
    ratio_S = (10 * torch.log10(signal_S / noise_S)).nan_to_num(nan=-SDR_RANGE_DB)
    return ratio_S.clamp(-SDR_RANGE_DB, SDR_RANGE_DB).tolist()


def _si_snr(est_SCT: Tensor, target_SCT: Tensor, *_: Any) -> Values:
    """SI-SNR as in `losses/si_snr.py`, without its mean over the sources."""
    return (-pit_neg_si_snr(est_SCT, target_SCT).loss_B).tolist()


def _si_sdr(est_SCT: Tensor, target_SCT: Tensor, *_: Any) -> Values:
    """SI-SDR (Le Roux et al., 2019): means are kept, and channels share one scale."""
    dot_S, energy_S = (
        (x_SCT * target_SCT).sum((1, 2)) for x_SCT in (est_SCT, target_SCT)
    )
    wanted_SCT = (dot_S / energy_S)[:, None, None] * target_SCT
    noise_S = (est_SCT - wanted_SCT).square().sum((1, 2))
    return _ratio_db(wanted_SCT.square().sum((1, 2)), noise_S)


def _snr(est_SCT: Tensor, target_SCT: Tensor, *_: Any) -> Values:
    """Energy of the target to that of the error, whose part is a wrong level, too."""
    noise_S = (est_SCT - target_SCT).square().sum((1, 2))
    return _ratio_db(target_SCT.square().sum((1, 2)), noise_S)


def _bss_eval_sdr(est_SCT: Tensor, target_SCT: Tensor, *_: Any) -> Values:
    """SDR of BSS Eval version 3 (Vincent et al., 2006), by `fast_bss_eval`.

    The target may be filtered by any 512 taps before what is left of the estimate
    counts as distortion, at any rate: scores at different rates are not comparable. A
    signal shorter than that has fewer samples than free taps, which flatters.
    """
    est_ST, target_ST = est_SCT[:, 0], target_SCT[:, 0]
    # fast_bss_eval does not normalise below a norm of 1e-6, and SDR ignores the scale.
    peak_S1 = est_ST.abs().amax(dim=-1, keepdim=True)
    est_ST = est_ST / torch.where(peak_S1 > 0, peak_S1, 1)
    # Its FFT is sized by the signal, and with fewer samples than taps the correlations
    # wrap around. Zeros at the end prevent that and change nothing else.
    missing = max(0, SDR_TAPS - est_ST.shape[-1])
    est_ST, target_ST = (
        torch.nn.functional.pad(x_ST, (0, missing)) for x_ST in (est_ST, target_ST)
    )
    losses_S = fast_bss_eval.sdr_loss(
        est_ST, target_ST, filter_length=SDR_TAPS, clamp_db=SDR_RANGE_DB
    )
    return (-losses_S).tolist()


def _nsdr(est_SCT: Tensor, target_SCT: Tensor, *_: Any) -> Values:
    """Return the SDR of the Sound Demixing Challenge in dB."""
    signal_S = target_SCT.square().sum((-2, -1))
    error_S = (target_SCT - est_SCT).square().sum((-2, -1))
    return (10 * torch.log10((signal_S + NSDR_EPS) / (error_S + NSDR_EPS))).tolist()


def _median_sdr(
    est_SCT: Tensor, target_SCT: Tensor, _mix_CT: Tensor, sample_rate: int
) -> Values:
    """Return each source's median over the frames; None if no frame can be scored."""
    if not (est_SCT.isfinite().all() and target_SCT.isfinite().all()):
        return [math.nan] * len(est_SCT)
    sdr_SL = framewise_sdr(est_SCT, target_SCT, sample_rate)
    sdr_SL = sdr_SL[:, ~sdr_SL.isnan().any(0)]  # a frame scores all stems or none
    if not sdr_SL.shape[1]:
        return [None] * len(est_SCT)
    return [statistics.median(sdr_L) for sdr_L in sdr_SL.tolist()]


def framewise_sdr(est_SCT: Tensor, target_SCT: Tensor, sample_rate: int) -> Tensor:
    """Return the SDR of BSS Eval version 4 (images) in every second, in dB.

    [S, C, T] gives [S, L], within [-100, 100]. As in museval, a frame in which any
    target or any estimate is all zeros is NaN for every source, and samples after the
    last whole second are left out; a song shorter than a second is one frame.
    """
    frame = min(sample_rate, target_SCT.shape[-1])
    target_SCLT, est_SCLT = (
        x.unfold(-1, frame, frame).double() for x in (target_SCT, est_SCT)
    )
    signal_SL = target_SCLT.square().sum((1, 3))
    error_SL = (target_SCLT - est_SCLT).square().sum((1, 3))
    sdr_SL = 10 * torch.log10(signal_SL / error_SL)
    silent_SL = (signal_SL == 0) | (est_SCLT.square().sum((1, 3)) == 0)
    sdr_SL = sdr_SL.clamp(-SDR_RANGE_DB, SDR_RANGE_DB)
    return sdr_SL.masked_fill(silent_SL.any(0), math.nan)


def _log_wmse(
    est_SCT: Tensor, target_SCT: Tensor, mix_CT: Tensor, sample_rate: int
) -> Values:
    """logWMSE as in `losses/stems.py`, the other way round: up to 73.7."""
    mix_BCT = mix_CT[None]
    return [
        -float(neg_log_wmse(error_CT[None, None], mix_BCT, sample_rate))
        for error_CT in est_SCT - target_SCT  # one by one, for the memory
    ]


def _l1_freq(est_SCT: Tensor, target_SCT: Tensor, *_: Any) -> Values:
    """MSST's `l1_freq`: 100 / (1 + 10 times the mean error of the magnitudes)."""
    missing = max(0, 1025 - est_SCT.shape[-1])  # the ends are reflected by 1024
    window = torch.ones(2048, device=est_SCT.device)
    values = []
    for pair in zip(est_SCT, target_SCT, strict=True):
        padded = (torch.nn.functional.pad(x_CT, (0, missing)) for x_CT in pair)
        est_CFL, true_CFL = (_magnitudes(x_CT, window, "reflect") for x_CT in padded)
        values.append(100 / (1 + 10 * float((est_CFL - true_CFL).abs().mean())))
    return values


def _excess(
    sign: int, est_SCT: Tensor, target_SCT: Tensor, _mix_CT: Tensor, sample_rate: int
) -> Values:
    """MSST's `bleedless` (sign 1) and `fullness` (-1): 100 / (1 + excess).

    The excess is the mean of the dB by which the estimate is above, or below, the
    target, where it is so in a mel spectrogram: 512 bands, the loudest 80 dB.
    """
    window = torch.hann_window(4096, device=est_SCT.device)
    bank_MF = _mel_bank(sample_rate).to(est_SCT.device)
    values = []
    for pair in zip(est_SCT, target_SCT, strict=True):
        mels = (bank_MF @ _magnitudes(x_CT, window, "constant") for x_CT in pair)
        levels = (20 * mel_CML.clamp(min=1e-10).log10() for mel_CML in mels)
        est_CML, true_CML = (x_CML.clamp(min=x_CML.max() - 80) for x_CML in levels)
        excess_X = (sign * (est_CML - true_CML)).flatten()
        excess_X = excess_X[excess_X > 0]
        values.append(100 / (1 + (float(excess_X.mean()) if len(excess_X) else 0)))
    return values


def _magnitudes(wave_CT: Tensor, window_T: Tensor, padding: str) -> Tensor:
    """Return [C, F, L], a channel at a time: the spectrum of a song is large."""
    options: Any = {"window": window_T, "pad_mode": padding, "return_complex": True}
    size = len(window_T)
    spectra = (torch.stft(x_T, size, 1024, **options) for x_T in wave_CT.float())
    return torch.stack([spectrum_FL.abs() for spectrum_FL in spectra])


@functools.cache
def _mel_bank(sample_rate: int) -> Tensor:
    with warnings.catch_warnings():  # the lowest bands hold no bin, in MSST as well
        warnings.simplefilter("ignore")
        limits = 2049, 0, sample_rate / 2, 512, sample_rate
        return melscale_fbanks(*limits, norm="slaney", mel_scale="slaney").T


def _stoi(
    est_SCT: Tensor, target_SCT: Tensor, _mix_CT: Tensor, sample_rate: int
) -> Values:
    """STOI (Taal et al., 2011), by `pystoi`."""
    stoi = importlib.import_module("pystoi").stoi
    return _by_package(lambda *pair: stoi(*pair, sample_rate), est_SCT, target_SCT)


def _pesq(
    est_SCT: Tensor, target_SCT: Tensor, _mix_CT: Tensor, sample_rate: int
) -> Values:
    """PESQ (ITU-T P.862, MOS-LQO): narrow band at 8 kHz, wide band at 16, by `pesq`."""
    pesq = importlib.import_module("pesq").pesq
    if est_SCT.shape[-1] > LONGEST_PESQ * sample_rate:
        return [None] * len(est_SCT)
    mode = "nb" if sample_rate == 8000 else "wb"
    return _by_package(lambda *x: pesq(sample_rate, *x, mode), est_SCT, target_SCT)


def _by_package(
    score: Callable[..., float], est_SCT: Tensor, target_SCT: Tensor
) -> Values:
    """Return a package's score of each target and estimate, None where it refuses."""
    values: list[float | None] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Not enough STFT frames")  # of pystoi
        for pair in zip(target_SCT, est_SCT, strict=True):
            try:
                values.append(float(score(*(x_CT[0].cpu().numpy() for x_CT in pair))))
            except (RuntimeError, RuntimeWarning, ValueError):
                values.append(None)
    return values


SHARED = {
    "si_sdr": Metric("SI-SDR", "dB", _si_sdr),
    "snr": Metric("SNR", "dB", _snr),
    "log_wmse": Metric("log-WMSE", "", _log_wmse),
    "l1_freq": Metric("L1 freq", "", _l1_freq),
    "bleedless": Metric("bleedless", "", functools.partial(_excess, 1)),
    "fullness": Metric("fullness", "", functools.partial(_excess, -1)),
}
#: With `_i` behind the name: the improvement over the mixture as every estimate.
SPEECH = {
    "si_snr": Metric("SI-SNR", "dB", _si_snr),
    "sdr": Metric("SDR", "dB", _bss_eval_sdr),
    **SHARED,
    "stoi": Metric("STOI", "", _stoi, "pystoi", lacking="it needs 0.4 s of sound"),
    "pesq": Metric(
        *("PESQ", "MOS", _pesq, "pesq", (8000, 16000)),
        lacking=f"it needs 0.25 to {LONGEST_PESQ} s of speech, and no silent estimate",
    ),
}
MUSIC = {
    "nsdr": Metric("nSDR", "dB", _nsdr),
    "sdr": Metric("SDR", "dB", _median_sdr),
    **SHARED,
}


def check_metrics(
    names: Sequence[str], table: Mapping[str, Metric], sample_rate: int
) -> None:
    """Raise an HparamsError where a run could not compute these metrics at its end."""
    known = [*table, *(f"{name}_i" for name in table if table is SPEECH)]
    for name in names:
        metric = table.get(name.removesuffix("_i"))
        if metric is None or name not in known:
            raise HparamsError(f"metrics: {name} is unknown; known: {', '.join(known)}")
        if metric.rates and sample_rate not in metric.rates:
            rates = " and ".join(map(str, metric.rates))
            raise HparamsError(
                f"metrics: {name} is defined at {rates} Hz, not at {sample_rate}"
            )
        if metric.package and importlib.util.find_spec(metric.package) is None:
            raise HparamsError(
                f"metrics: {name} needs a package: pip install {metric.package}"
            )


def of_column(column: str) -> tuple[Metric | None, str]:
    """Return the metric of a column, and its title there, as `SDRi` or `nSDR drums`."""
    for name, metric in (MUSIC | SPEECH).items():
        if f"{column}_".startswith(f"{name}_"):
            rest = column.removeprefix(name).replace("_", " ", 1)
            return metric, metric.title + ("i" if rest == " i" else rest)
    return None, column
