"""What training does with stems that a table of labels calls wrong."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from modules.data.labels import Key, Label
from modules.data.manifest import Row
from modules.runtime.errors import DataError

logger = logging.getLogger(__name__)

ACTIONS = ("drop", "weight", "swap")

Trust = dict[str, list[float]]


def act_on_labels(
    rows: Sequence[Row],
    labels: Mapping[Key, Label],
    sources: Sequence[str],
    action: str = "drop",
) -> tuple[list[Row], Trust]:
    """Return the tracks to train on, and the weight of each of their stems.

    `drop` gives a wrong stem the weight 0, `weight` gives every stem 1 - wrong, `swap`
    exchanges the files of two wrong stems of a track that sound like each other, and
    drops all other wrong ones. A track of weights 0 is left out. A DataError says that
    the labels name no stem of these tracks, or leave none.
    """
    kept: list[Row] = []
    trust: Trust = {}
    named = exchanged = dropped = 0
    for row in rows:
        named += sum((row.id, name) in labels for name in sources)
        found = [labels.get((row.id, name), Label(0.0)) for name in sources]
        if action == "weight":
            wrong = [label.wrong for label in found]
        else:
            wrong = [float(label.is_wrong) for label in found]
        like = [label.sounds_like for label in found]
        files = list(row.sources)
        for a, b in itertools.combinations(range(len(files)), 2):
            alike = like[a] == sources[b] and like[b] == sources[a]
            if action == "swap" and alike and wrong[a] and wrong[b]:
                files[a], files[b] = files[b], files[a]
                wrong[a] = wrong[b] = 0.0
                exchanged += 2
        dropped += wrong.count(1.0)
        trust[row.id] = [1 - value for value in wrong]
        if any(trust[row.id]):
            kept.append(replace(row, sources=tuple(files)))
    if not named:
        example = rows[0].id, sources[0]
        raise DataError(f"labels: no row is of a training stem, such as {example}")
    count = f"{named} of {len(rows) * len(sources)} stems have one"
    logger.info(f"labels: {count}, {dropped} are left out, {exchanged} exchanged")
    for number, name in enumerate(sources):
        if not any(trust[row.id][number] for row in kept):
            raise DataError(f"labels: every {name!r} is called wrong; none is left")
    return kept, trust


def without_dropped(rows: Sequence[Row], trust: Trust) -> list[Row]:
    """Return the rows with stems of weight 0 marked as unused: they are not drawn."""
    zeros = {t: [k for k, w in enumerate(ws, 1) if not w] for t, ws in trust.items()}
    return [replace(r, unused=(*sorted({*r.unused, *zeros[r.id]}),)) for r in rows]
