"""Scores of separated speech and music, and the table that collects them.

Speech: SI-SNR as in `losses/si_snr.py`. SDR is that of BSS Eval version 3 (Vincent et
al., 2006): the target may be filtered by any 512 taps before what is left of the
estimate counts as distortion; computed by `fast_bss_eval` (Scheibler, 2022). The
improvements (`si_snr_i`, `sdr_i`) are over the mixture as the estimate of every source.

Music has two scores that are both called SDR, of the target as it is, with no filter:

- `nsdr`, that of the Sound Demixing Challenge: one ratio over the whole song, then the
  mean over songs;
- `sdr`, that of MUSDB18's results: BSS Eval version 4 as `museval` 0.4.1 computes it,
  the median over frames of a second, then the median over songs. Its filters enter
  only into ISR, SIR and SAR, so `framewise_sdr` agrees with it to the last digit, in a
  hundredth of the time and without its dependencies (pandas, musdb, ffmpeg).

A stem that is silent throughout a song has neither score, and the song's other stems
are scored without it. (The challenge's formula would give about -90 dB, which would
dominate the mean, and museval no score for the whole song.)

Shapes: S source, C channel, T sample, L frame.
"""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import fast_bss_eval
import torch
from torch import Tensor

from modules.losses.si_snr import SILENCE, pit_neg_si_snr, reorder
from modules.runtime.distributed import gather_objects
from modules.runtime.files import write_text
from modules.runtime.tables import write_table

METRICS = ("si_snr", "si_snr_i", "sdr", "sdr_i")

SDR_TAPS = 512
SDR_RANGE_DB = 100.0  # as for SI-SNR; a perfect estimate would score infinity
NSDR_EPS = 1e-7  # the challenge adds it to both energies, for the same reason

MAX_LISTED = 20  # ids of non-finite rows in the summary


def score_example(
    est_ST: Tensor,
    target_ST: Tensor,
    mix_T: Tensor,
    sample_rate: int,
    with_sdr: bool = True,
) -> dict[str, float]:
    """Score one separated mixture, in float64.

    Estimates, in any order, are assigned to targets by the best SI-SNR. By convention
    the SDR filter has 512 taps at any rate, so scores at different rates are not
    comparable; for a signal shorter than that it has more free taps than samples, which
    flatters. `with_sdr=False` leaves out `sdr` and `sdr_i`, which cost most of the
    time.

    The scores are in dB, each within [-100, 100], and means over the targets that are
    not silent by the rule of `losses/si_snr.py`. All are NaN if every target is silent
    or any sample is not finite. Shapes that do not fit together are a ValueError.
    """
    _check(est_ST, target_ST, mix_T, sample_rate, "source", "sample")
    est_ST, target_ST = est_ST.detach().double(), target_ST.detach().double()
    mix_ST = mix_T.detach().double().expand_as(target_ST)
    est, base = (pit_neg_si_snr(x[None], target_ST[None]) for x in (est_ST, mix_ST))
    active_S = est.active_BS[0]
    finite = est.loss_B.isfinite() & base.loss_B.isfinite()
    names = METRICS if with_sdr else METRICS[:2]
    if not (finite & active_S.any()):
        return dict.fromkeys(names, math.nan)
    pairs = [[-est.loss_B.item(), -base.loss_B.item()]]
    if with_sdr:
        est_ST = reorder(est_ST[None], est.permutation_BS)[0]
        sdrs_S = (_sdr_db(x[active_S], target_ST[active_S]) for x in (est_ST, mix_ST))
        pairs.append([sdr_S.mean().item() for sdr_S in sdrs_S])
    values = [value for own, mix in pairs for value in (own, own - mix)]
    return dict(zip(names, values, strict=True))


def _sdr_db(est_ST: Tensor, target_ST: Tensor) -> Tensor:
    """Return the SDR of estimate j against target j, `[S]`."""
    # fast_bss_eval does not normalise below a norm of 1e-6, and SDR ignores the scale.
    peak_S1 = est_ST.abs().amax(dim=-1, keepdim=True)
    est_ST = est_ST / torch.where(peak_S1 > 0, peak_S1, 1)
    # Its FFT is sized by the signal, and with fewer samples than taps the correlations
    # wrap around. Zeros at the end prevent that and change nothing else.
    missing = max(0, SDR_TAPS - est_ST.shape[-1])
    est_ST, target_ST = (
        torch.nn.functional.pad(x_ST, (0, missing)) for x_ST in (est_ST, target_ST)
    )
    return -fast_bss_eval.sdr_loss(
        est_ST, target_ST, filter_length=SDR_TAPS, clamp_db=SDR_RANGE_DB
    )


def _check(
    est: Tensor, target: Tensor, mix: Tensor, sample_rate: int, *dims: str | int
) -> None:
    """Raise unless both are [*dims], with any number for "source", and mix the rest."""
    shapes = [tuple(x.shape) for x in (est, target, mix)]
    if (
        est.ndim != len(dims)
        or dims[0] not in ("source", len(est))
        or shapes[0] != shapes[1]
        or shapes[0][1:] != shapes[2]
    ):
        source, *rest = map(str, dims)
        raise ValueError(
            f"estimates and targets must be [{', '.join((source, *rest))}] and the "
            f"mixture [{', '.join(rest)}], all of one length, got {shapes[0]}, "
            f"{shapes[1]} and {shapes[2]}"
        )
    if sample_rate <= 0:
        raise ValueError(f"the sample rate must be positive, got {sample_rate}")


def score_song(
    est_SCT: Tensor,
    target_SCT: Tensor,
    mix_CT: Tensor,
    sample_rate: int,
    sources: Sequence[str],
    with_bsseval: bool = True,
) -> dict[str, float | None]:
    """Score one separated song, in float64.

    Estimates and targets are in the order of `sources`, the names of the stems. Only
    the shape of the mixture is checked. `with_bsseval=False` leaves out `sdr`.

    The scores are in dB: `nsdr`, the mean over the stems that have one, and
    `nsdr_<source>` of each; likewise `sdr` and `sdr_<source>`. They are None for a stem
    whose target is silent by the rule of `losses/si_snr.py`, an `sdr` also where no
    frame can be scored, and NaN if a sample is not finite. Errors are as in
    `score_example`.
    """
    _check(est_SCT, target_SCT, mix_CT, sample_rate, len(sources), "channel", "sample")
    est_SCT, target_SCT = est_SCT.detach().double(), target_SCT.detach().double()
    silent_S = target_SCT.square().mean((1, 2)) <= SILENCE
    silent_S &= est_SCT.isfinite().all(2).all(1)  # NaN must show in the score
    est_SCT, target_SCT = est_SCT[~silent_S], target_SCT[~silent_S]
    scores: dict[str, list[float | None]] = {"nsdr": nsdr(est_SCT, target_SCT).tolist()}
    if with_bsseval:
        scores["sdr"] = _medians(est_SCT, target_SCT, sample_rate)
    named: dict[str, float | None] = {}
    for metric, values in scores.items():
        found = [value for value in values if value is not None]
        named[metric] = math.fsum(found) / len(found) if found else None
        left = iter(values)
        for source, is_silent in zip(sources, silent_S.tolist(), strict=True):
            named[f"{metric}_{source}"] = None if is_silent else next(left)
    return named


def _medians(
    est_SCT: Tensor, target_SCT: Tensor, sample_rate: int
) -> list[float | None]:
    """Return each source's median over the frames; None if no frame can be scored."""
    if not (est_SCT.isfinite().all() and target_SCT.isfinite().all()):
        return [math.nan] * len(est_SCT)
    sdr_SL = framewise_sdr(est_SCT, target_SCT, sample_rate)
    sdr_SL = sdr_SL[:, ~sdr_SL.isnan().any(0)]  # a frame scores all stems or none
    if not sdr_SL.shape[1]:
        return [None] * len(est_SCT)
    return [statistics.median(sdr_L) for sdr_L in sdr_SL.tolist()]


def nsdr(est_SCT: Tensor, target_SCT: Tensor) -> Tensor:
    """Return the SDR of the Sound Demixing Challenge in dB: [..., C, T] to [...]."""
    signal = target_SCT.square().sum((-2, -1))
    error = (target_SCT - est_SCT).square().sum((-2, -1))
    return 10 * torch.log10((signal + NSDR_EPS) / (error + NSDR_EPS))


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


class ResultTable:
    """One row of metrics per example, and their summary.

    Example
    -------
    >>> table = ResultTable()
    >>> table.add("b", si_snr_i=11.0)
    >>> table.add("a", si_snr_i=9.0)
    >>> table.add("c", si_snr_i=float("nan"))
    >>> summary = table.summary()
    >>> summary["metrics"]["si_snr_i"]
    {'mean': 10.0, 'standard_error': 1.0, 'median': 10.0, 'count': 2}
    >>> summary["non_finite"], summary["non_finite_ids"]
    (1, ['c'])
    """

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, float | None]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> list[dict[str, str | float | None]]:
        """Rows as `{"id": ..., metric: value, ...}`, sorted by id."""
        return [{"id": id_, **self._rows[id_]} for id_ in sorted(self._rows)]

    def add(self, id: str, **metrics: float | None) -> None:
        """Add the scores of one example; a second row of the same id is dropped.

        Samplers that share a set between ranks repeat examples to give every rank as
        many. A metric that says nothing about this example is None: the row counts in
        the others. A ValueError is raised if the names differ from those before.
        """
        known = next(iter(self._rows.values()), metrics)
        if metrics.keys() != known.keys():
            raise ValueError(
                f"row {id!r} has metrics {sorted(metrics)}, the rows before it "
                f"{sorted(known)}"
            )
        values = {name: metrics[name] for name in known}
        self._rows.setdefault(
            id, {name: v if v is None else float(v) for name, v in values.items()}
        )

    def merge_ranks(self) -> None:
        """Give every rank the rows of all ranks; every rank must call it."""
        for rows in gather_objects(self._rows):
            for id_, metrics in rows.items():
                self.add(id_, **metrics)

    def summary(self) -> dict:
        """Return means, None where undefined, over rows whose metrics are all finite.

        `non_finite_ids` names the first 20 others. The standard error is that of the
        mean: sample standard deviation / sqrt(count).
        """
        finite = [row for row in self._rows.values() if _is_finite(row)]
        bad = sorted(id_ for id_, row in self._rows.items() if not _is_finite(row))
        names = next(iter(self._rows.values()), {})
        return {
            "count": len(self._rows),
            "non_finite": len(bad),
            "non_finite_ids": bad[:MAX_LISTED],
            "metrics": {
                name: _mean([v for row in finite if (v := row[name]) is not None])
                for name in names
            },
        }

    def write_csv(self, path: str | Path) -> Path:
        """Write one row per example, sorted by id, in one atomic step."""
        names = list(next(iter(self._rows.values()), {}))
        rows = ([row["id"], *(row[name] for name in names)] for row in self.rows)
        return write_table(path, ["id", *names], rows)

    def write_json(self, path: str | Path) -> Path:
        """Write the summary as strict JSON in one atomic step."""
        text = json.dumps(self.summary(), indent=2, allow_nan=False)
        return write_text(path, text + "\n")


def _is_finite(row: dict[str, float | None]) -> bool:
    return all(value is None or math.isfinite(value) for value in row.values())


def _mean(values: list[float]) -> dict[str, float | int | None]:
    """Return exactly rounded statistics, whatever the order of the rows."""
    count = len(values)
    mean = math.fsum(values) / count if count else None
    error = None
    if mean is not None and count > 1:
        variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
        error = math.sqrt(variance / count)
    median = statistics.median(values) if values else None
    return {"mean": mean, "standard_error": error, "median": median, "count": count}
