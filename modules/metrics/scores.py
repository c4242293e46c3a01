"""Scores of separated speech and music, and the table that collects them.

Which metrics there are says `measures.py`. A stem that is silent throughout a song has
no score, and the song's other stems are scored without it. (The challenge's formula
would give about -90 dB, which would dominate the mean, and museval no score for the
whole song.)

Shapes: S source, C channel, T sample.
"""

import functools
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from modules.losses.si_snr import SILENCE, pit_neg_si_snr, reorder
from modules.metrics.measures import MUSIC, SPEECH, of_column
from modules.runtime.distributed import gather_objects
from modules.runtime.files import write_text
from modules.runtime.tables import write_table

METRICS = ("si_snr", "si_snr_i", "sdr", "sdr_i")

MAX_LISTED = 20  # ids of non-finite rows in the summary


def score_example(
    est_ST: Tensor,
    target_ST: Tensor,
    mix_T: Tensor,
    sample_rate: int,
    metrics: Sequence[str] = METRICS,
) -> dict[str, float | None]:
    """Score one separated mixture by metrics of speech, in float64.

    Estimates, in any order, are assigned to targets by the best SI-SNR.

    The scores are means over the targets that are not silent by the rule of
    `losses/si_snr.py`, those in dB within [-100, 100]. All are NaN if every target is
    silent or any sample is not finite. One is None where its measure says nothing, as
    of a file too short. Shapes that do not fit together are a ValueError.
    """
    _check(est_ST, target_ST, mix_T, sample_rate, "source", "sample")
    est_ST, target_ST = est_ST.detach().double(), target_ST.detach().double()
    mix_T = mix_T.detach().double()
    found = pit_neg_si_snr(est_ST[None], target_ST[None])
    active_S = found.active_BS[0]
    if not (found.loss_B.isfinite() & mix_T.isfinite().all() & active_S.any()):
        return dict.fromkeys(metrics, math.nan)
    est_ST = reorder(est_ST[None], found.permutation_BS)[0]
    est_SCT, mix_SCT, target_SCT = (
        x_ST[active_S, None] for x_ST in (est_ST, mix_T.expand_as(est_ST), target_ST)
    )

    @functools.cache
    def mean(name: str, of_mixture: bool) -> float | None:
        waves = mix_SCT if of_mixture else est_SCT, target_SCT, mix_T[None]
        values = SPEECH[name].measure(*waves, sample_rate)
        known = [value for value in values if value is not None]
        return torch.tensor(known, dtype=torch.double).mean().item() if known else None

    scores: dict[str, float | None] = {}
    for metric in metrics:
        name = metric.removesuffix("_i")
        own, base = mean(name, False), mean(name, True) if name != metric else 0.0
        scores[metric] = None if own is None or base is None else own - base
    return scores


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
    metrics: Sequence[str] = ("nsdr", "sdr"),
) -> dict[str, float | None]:
    """Score one separated song by metrics of music, in float64.

    Estimates and targets are in the order of `sources`, the names of the stems.

    The scores are, for each metric, the mean over the stems that have one, under its
    name, and `<metric>_<source>` of each. They are None for a stem whose target is
    silent by the rule of `losses/si_snr.py`, an `sdr` also where no frame can be
    scored, and NaN if a sample is not finite. Errors are as in `score_example`.
    """
    _check(est_SCT, target_SCT, mix_CT, sample_rate, len(sources), "channel", "sample")
    est_SCT, target_SCT, mix_CT = (
        x.detach().double() for x in (est_SCT, target_SCT, mix_CT)
    )
    silent_S = target_SCT.square().mean((1, 2)) <= SILENCE
    silent_S &= est_SCT.isfinite().all(2).all(1)  # NaN must show in the score
    est_SCT, target_SCT = est_SCT[~silent_S], target_SCT[~silent_S]
    finite_S = (est_SCT + target_SCT).isfinite().all(2).all(1).tolist()
    named: dict[str, float | None] = {}
    for metric in metrics:
        values = MUSIC[metric].measure(est_SCT, target_SCT, mix_CT, sample_rate)
        values = [v if ok else math.nan for v, ok in zip(values, finite_S, strict=True)]
        found = [value for value in values if value is not None]
        named[metric] = math.fsum(found) / len(found) if found else None
        left = iter(values)
        for source, is_silent in zip(sources, silent_S.tolist(), strict=True):
            named[f"{metric}_{source}"] = None if is_silent else next(left)
    return named


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
        known = {name: of_column(name)[0] for name in names}
        return {
            "count": len(self._rows),
            "non_finite": len(bad),
            "non_finite_ids": bad[:MAX_LISTED],
            "metrics": {
                name: _mean([v for row in finite if (v := row[name]) is not None])
                for name in names
            },
            "units": {name: metric.unit for name, metric in known.items() if metric},
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
