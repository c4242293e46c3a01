"""From signals of how suspect each stem is to one number; no true label is used.

A signal gives some stems a number each, higher for the more suspect.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from modules.data.labels import Key
from modules.runtime.tables import read_table

Signal = dict[Key, float]


def loss_signals(path: Path) -> dict[str, Signal]:
    """Read the losses that a training kept; return what they say of each stem.

    `loss` is the mean rank of a stem among those of its name, over the epochs, from 0
    for the smallest loss to 1; `early_loss` the same over the first third of them, when
    wrong labels are not learnt by heart yet (Arpit et al., ICML 2017); `forgetting` the
    mean rise of the loss from one epoch to the next (Toneva et al., ICLR 2019);
    `dropped` the share of times that truncation left it out.
    """
    losses: dict[Key, dict[int, float]] = defaultdict(dict)
    counts: dict[Key, list[int]] = defaultdict(lambda: [0, 0])
    for _, row in read_table(path, ("track", "stem", "epoch", "loss", "offered")):
        key = row["track"], row["stem"]
        losses[key][int(row["epoch"])] = float(row["loss"])
        counts[key][0] += int(row["offered"])
        counts[key][1] += int(row["dropped"])
    epochs = sorted({epoch for known in losses.values() for epoch in known})
    ranks: dict[Key, list[tuple[int, float]]] = defaultdict(list)
    for epoch in epochs:
        now = {key: known[epoch] for key, known in losses.items() if epoch in known}
        for key, rank in ranked(now).items():
            ranks[key].append((epoch, rank))
    early = epochs[: math.ceil(len(epochs) / 3)]
    found: dict[str, Signal] = {
        "loss": {k: statistics.fmean(r for _, r in known) for k, known in ranks.items()}
    }
    firsts = {k: [r for e, r in known if e in early] for k, known in ranks.items()}
    found["early_loss"] = {k: statistics.fmean(x) for k, x in firsts.items() if x}
    found["forgetting"] = {}
    for key, known in losses.items():
        values = [known[epoch] for epoch in sorted(known)]
        rises = [max(b - a, 0.0) for a, b in zip(values, values[1:], strict=False)]
        found["forgetting"][key] = statistics.fmean(rises) if rises else 0.0
    found["dropped"] = {key: dropped / n for key, (n, dropped) in counts.items() if n}
    return {k: signal for k, signal in found.items() if len(set(signal.values())) > 1}


def of_each_stem(signal: Mapping[Key, float]) -> dict[str, list[Key]]:
    """Return the keys of a signal by the name of their stem."""
    names: dict[str, list[Key]] = defaultdict(list)
    for key in signal:
        names[key[1]].append(key)
    return names


def ranked(signal: Mapping[Key, float]) -> Signal:
    """Return the rank of each stem among those of its name, from 0 to 1.

    >>> ranked({("a", "bass"): 3.0, ("b", "bass"): 5.0, ("a", "drums"): 1.0})
    {('a', 'bass'): 0.0, ('b', 'bass'): 1.0, ('a', 'drums'): 0.5}
    """
    found: Signal = {}
    for keys in of_each_stem(signal).values():
        order = sorted(keys, key=lambda key: signal[key])
        for place, key in enumerate(order):
            found[key] = place / (len(order) - 1) if len(order) > 1 else 0.5
    return found


def less_median(signal: Mapping[Key, float]) -> Signal:
    """Return a signal less the median of all stems of the same name."""
    return {
        key: signal[key] - statistics.median(signal[k] for k in keys)
        for keys in of_each_stem(signal).values()
        for key in keys
    }


def standard(signal: Mapping[Key, float]) -> Signal:
    """Return a signal less its median, over its robust spread, within -3 and 3."""
    middle = statistics.median(signal.values())
    spread = 1.4826 * statistics.median(abs(x - middle) for x in signal.values())
    spread = spread or statistics.pstdev(signal.values()) or 1.0
    return {k: min(max((x - middle) / spread, -3.0), 3.0) for k, x in signal.items()}


def combine(groups: Sequence[Sequence[Mapping[Key, float]]]) -> Signal:
    """Return the mean over the groups of the means of their signals, standardised.

    Signals of one origin are a group: three sums of the same losses are no more
    evidence than one.
    """
    means: list[Signal] = []
    for group in groups:
        values: dict[Key, list[float]] = defaultdict(list)
        for signal in group:
            for key, value in standard(signal).items():
                values[key].append(value)
        if values:
            means.append({key: statistics.fmean(x) for key, x in values.items()})
    keys = dict.fromkeys(key for mean in means for key in mean)
    return {k: statistics.fmean(mean.get(k, 0.0) for mean in means) for k in keys}
