"""Scores of separated speech, and the table that collects them.

SI-SNR as in `modules.losses`. SDR is that of BSS Eval version 3 (Vincent et al., 2006):
the target may be filtered by any 512 taps before what is left of the estimate counts
as distortion; computed by `fast_bss_eval` (Scheibler, 2022). The improvements
(`si_snr_i`, `sdr_i`) are over the mixture taken as the estimate of every source.

Shapes: S source, T sample.
"""

import csv
import io
import json
import math
from pathlib import Path

import fast_bss_eval
import torch
from torch import Tensor

from data_prep.manifest import write_text
from modules.distributed import gather_objects
from modules.losses import pit_neg_si_snr, reorder

METRICS = ("si_snr", "si_snr_i", "sdr", "sdr_i")
SDR_TAPS = 512
# The same bound that SI-SNR has; without it a perfect estimate scores infinity.
SDR_RANGE_DB = 100.0
# how many ids of non-finite rows the summary lists
MAX_LISTED = 20


def score_example(
    est_ST: Tensor,
    target_ST: Tensor,
    mix_T: Tensor,
    sample_rate: int,
    with_sdr: bool = True,
) -> dict[str, float]:
    """Score one separated mixture, in float64.

    Estimates are assigned to targets by the best SI-SNR, for both metrics. A target
    that is silent by the rule of `modules.losses` has no score and is left out of the
    means. Signals shorter than the 512 taps are scored like any other, but the filter
    then has more free taps than the signal has samples, so their SDR flatters.

    Arguments
    ---------
    est_ST, target_ST : Tensor
        Estimates in any order, and targets; `[S, T]`.
    mix_T : Tensor
        The mixture.
    sample_rate : int
        In Hz. By convention the SDR filter has 512 taps at any rate, so scores at
        different rates are not comparable, and the value is only checked.
    with_sdr : bool
        False leaves out `sdr` and `sdr_i`, which cost most of the time.

    Returns
    -------
    scores : dict[str, float]
        `si_snr`, `si_snr_i`, `sdr`, `sdr_i` in dB, means over the active sources,
        each single score within [-100, 100]. All NaN if every target is silent or any
        sample is not finite: `ResultTable` counts such rows and leaves them out.

    Raises
    ------
    ValueError
        On shapes that do not fit together or a rate that is not positive.

    Example
    -------
    >>> target_ST = torch.tensor([[1.0, 1.0, -1.0, -1.0], [0.1, -0.1, 0.1, -0.1]])
    >>> scores = score_example(target_ST.flip(0), target_ST, target_ST.sum(0), 8000)
    >>> round(scores["si_snr_i"], 2)  # 100 dB, where the mixture has +20 and -20 dB
    100.0
    """
    _check(est_ST, target_ST, mix_T, sample_rate)
    est_ST, target_ST = est_ST.detach().double(), target_ST.detach().double()
    mix_ST = mix_T.detach().double().expand_as(target_ST)
    est, base = (pit_neg_si_snr(x[None], target_ST[None]) for x in (est_ST, mix_ST))
    active_S = est.active_BS[0]
    finite = est.loss_B.isfinite() & base.loss_B.isfinite()
    names = METRICS if with_sdr else METRICS[:2]
    if not (finite & active_S.any()):
        return dict.fromkeys(names, math.nan)
    si_snr, base_si_snr = -est.loss_B.item(), -base.loss_B.item()
    values = [si_snr, si_snr - base_si_snr]
    if not with_sdr:
        return dict(zip(names, values, strict=True))
    est_ST = reorder(est_ST[None], est.permutation_BS)[0]
    sdr, base_sdr = (
        _sdr_db(x_ST[active_S], target_ST[active_S]).mean().item()
        for x_ST in (est_ST, mix_ST)
    )
    values += [sdr, sdr - base_sdr]
    return dict(zip(names, values, strict=True))


def _sdr_db(est_ST: Tensor, target_ST: Tensor) -> Tensor:
    """SDR of estimate j against target j, `[S]`."""
    # fast_bss_eval does not normalise below a norm of 1e-6; scale is free in SDR
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


def _check(est_ST: Tensor, target_ST: Tensor, mix_T: Tensor, sample_rate: int) -> None:
    shapes = [tuple(x.shape) for x in (est_ST, target_ST, mix_T)]
    if est_ST.ndim != 2 or shapes[0] != shapes[1] or shapes[0][1:] != shapes[2]:
        raise ValueError(
            "estimates and targets must be [source, sample] and the mixture [sample], "
            f"all of one length, got {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    if sample_rate <= 0:
        raise ValueError(f"the sample rate must be positive, got {sample_rate}")


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
    {'mean': 10.0, 'standard_error': 1.0, 'count': 2}
    >>> summary["non_finite"], summary["non_finite_ids"]
    (1, ['c'])
    """

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, float]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> list[dict[str, str | float]]:
        """The rows as `{"id": ..., metric: value, ...}`, sorted by id."""
        return [{"id": id_, **self._rows[id_]} for id_ in sorted(self._rows)]

    def add(self, id: str, **metrics: float) -> None:
        """Add the scores of one example.

        A second row of the same id is dropped: samplers that share a set between
        ranks repeat examples to give every rank as many.

        Arguments
        ---------
        id : str
            Name of the example.
        **metrics : float
            Its scores; every row must have the same names.

        Raises
        ------
        ValueError
            If the names differ from those of the rows before.
        """
        known = next(iter(self._rows.values()), metrics)
        if metrics.keys() != known.keys():
            raise ValueError(
                f"row {id!r} has metrics {sorted(metrics)}, the rows before it "
                f"{sorted(known)}"
            )
        self._rows.setdefault(id, {name: float(metrics[name]) for name in known})

    def merge_ranks(self) -> None:
        """Give every rank the rows of all ranks; without a process group do nothing.

        A collective call: every rank must make it.
        """
        for rows in gather_objects(self._rows):
            for id_, metrics in rows.items():
                self.add(id_, **metrics)

    def summary(self) -> dict:
        """Means over the rows whose metrics are all finite.

        Returns
        -------
        summary : dict
            `count` rows in all, of which `non_finite` were left out (the first 20 are
            named in `non_finite_ids`), and for each name in `metrics` its `mean`,
            `standard_error` (of the mean: sample standard deviation / sqrt(count))
            and `count`. A mean of no row, and the error of fewer than two, are None.
        """
        finite = [row for row in self._rows.values() if _is_finite(row)]
        bad = sorted(id_ for id_, row in self._rows.items() if not _is_finite(row))
        names = next(iter(self._rows.values()), {})
        return {
            "count": len(self._rows),
            "non_finite": len(bad),
            "non_finite_ids": bad[:MAX_LISTED],
            "metrics": {name: _mean([row[name] for row in finite]) for name in names},
        }

    def write_csv(self, path: str | Path) -> Path:
        """Write one row per example, sorted by id, in one atomic step."""
        names = list(next(iter(self._rows.values()), {}))
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["id", *names])
        for row in self.rows:
            writer.writerow([row["id"], *(row[name] for name in names)])
        return write_text(path, text.getvalue())

    def write_json(self, path: str | Path) -> Path:
        """Write the summary as strict JSON in one atomic step."""
        text = json.dumps(self.summary(), indent=2, allow_nan=False)
        return write_text(path, text + "\n")


def _is_finite(row: dict[str, float]) -> bool:
    return all(math.isfinite(value) for value in row.values())


def _mean(values: list[float]) -> dict[str, float | int | None]:
    """Mean and standard error; exactly rounded, so the order of rows is no matter."""
    count = len(values)
    mean = math.fsum(values) / count if count else None
    error = None
    if count > 1:
        variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
        error = math.sqrt(variance / count)
    return {"mean": mean, "standard_error": error, "count": count}
