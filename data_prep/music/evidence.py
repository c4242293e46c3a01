"""From signals of how suspect each stem is to one number; no true label is used.

A signal gives some stems a number each, higher for the more suspect.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, pstdev

from modules.data.labels import Key
from modules.runtime.tables import read_table

Signal = dict[Key, float]


def loss_signals(path: Path) -> dict[str, Signal]:
    """Read the losses that a training kept; return what they say of each stem.

    `loss` is the mean over the epochs of a stem's loss, relative to its level, less the
    median of its name, `early_loss` that of the first third of them, when wrong labels
    are not learnt by heart yet (Arpit et al., ICML 2017), `forgetting` the mean rise
    from an epoch to the next (Toneva et al., ICLR 2019), and `dropped` the share of
    times that truncation left the stem out.
    """
    losses: dict[int, Signal] = defaultdict(dict)
    counts: dict[Key, list[int]] = defaultdict(lambda: [0, 0])
    for _, row in read_table(path, ("track", "stem", "epoch", "loss", "offered")):
        key = row["track"], row["stem"]
        losses[int(row["epoch"])][key] = float(row["loss"])
        counts[key][0] += int(row["dropped"])
        counts[key][1] += int(row["offered"])
    epochs = [less_median(losses[epoch]) for epoch in sorted(losses)]
    rises = [
        {k: max(after[k] - before[k], 0.0) for k in before.keys() & after.keys()}
        for before, after in zip(epochs, epochs[1:], strict=False)
    ]
    found = {"loss": mean_of(epochs), "forgetting": mean_of(rises)}
    found["early_loss"] = mean_of(epochs[: math.ceil(len(epochs) / 3)])
    found["dropped"] = {key: dropped / n for key, (dropped, n) in counts.items()}
    return {k: signal for k, signal in found.items() if len(set(signal.values())) > 1}


def mean_of(signals: Sequence[Mapping[Key, float]]) -> Signal:
    """Return the mean of each stem over the signals that judge it."""
    keys = dict.fromkeys(key for signal in signals for key in signal)
    return {k: fmean(s[k] for s in signals if k in s) for k in keys}


def less_median(signal: Mapping[Key, float]) -> Signal:
    """Return a signal less the median of all stems of the same name."""
    names: dict[str, list[float]] = defaultdict(list)
    for (_, stem), value in signal.items():
        names[stem].append(value)
    middles = {name: median(values) for name, values in names.items()}
    return {key: value - middles[key[1]] for key, value in signal.items()}


def standard(signal: Mapping[Key, float]) -> Signal:
    """Return a signal less its median, over its robust spread, within -3 and 3."""
    middle = median(signal.values())
    spread = 1.4826 * median(abs(x - middle) for x in signal.values())
    spread = spread or pstdev(signal.values()) or 1.0
    return {k: min(max((x - middle) / spread, -3.0), 3.0) for k, x in signal.items()}
