"""Do many small things in threads: most of their time they wait for a disk."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")

# Handed to a thread at a time: one by one, handing over takes longer than a header.
LARGEST_PART = 64


def in_threads(
    call: Callable[[Item], Result],
    items: Sequence[Item],
    threads: int | None = None,
    desc: str | None = None,
) -> Iterator[Result]:
    """Yield the result of each item in order; `desc` labels a bar on a terminal.

    There are as many threads as cores if `threads` is None.

    >>> list(in_threads(len, ["a", "", "abc"], threads=2))
    [1, 0, 3]
    """
    threads = threads or os.cpu_count() or 1
    size = max(1, min(LARGEST_PART, len(items) // (8 * threads)))
    parts = [items[first : first + size] for first in range(0, len(items), size)]
    bar = tqdm(total=len(items), desc=desc, disable=None if desc else True)
    with bar, ThreadPoolExecutor(threads) as pool:
        for results in pool.map(lambda part: [call(item) for item in part], parts):
            bar.update(len(results))
            yield from results
