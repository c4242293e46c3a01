"""Randomness by counter: every random number is a function of where it is drawn.

Nothing is drawn from a generator that lives across steps. So there is no state to
save: a run that was killed continues with the numbers it would have drawn, and an
example does not depend on how many workers or processes make the others. Data sets make
a generator for each example with :func:`numpy_rng`; the training loop calls
:func:`seed_step` before each step, for what reads the global generators.

The counters become the `spawn_key` of a `numpy.random.SeedSequence`: unlike a plain
list of integers, whose trailing zeros are not told from padding, `(3,)` and `(3, 0)`
then give unrelated streams.
"""

import enum
import hashlib
import operator
import random

import numpy as np


@enum.unique
class Stream(enum.IntEnum):
    """The counter that keeps draws for different purposes apart.

    The numbers are part of every result: add new ones, never change one.
    """

    ORDER = 1  # of an epoch's examples, and the places of independent stems
    CROP = 2
    MIXING = 3
    REMIX = 4
    SEGMENT = 5  # draws that all stems of a segment share
    STEM = 6
    TAKES = 7  # where the second take of a stem comes from, and whether there is one
    EFFECT = 8
    BALANCE = 9


_STEP_STREAM = 0x5EED  # keeps seed_step apart from every numpy_rng(seed, ...)

_LIMIT = 2**32  # one word of a SeedSequence; two words would collide with two counters


def _words(**values: int) -> list[int]:
    """Check that every value is an integer in [0, 2**32) and return them."""
    words = []
    for name, value in values.items():
        try:
            word = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an integer, got {value!r}") from None
        if not 0 <= word < _LIMIT:
            raise ValueError(f"{name} must be in 0..{_LIMIT - 1}, got {word}")
        words.append(word)
    return words


def numpy_rng(seed: int, *counters: int) -> np.random.Generator:
    """Return a generator that depends on the seed and the counters alone.

    The counters say where the numbers are used, such as epoch, index and stream; a
    different number of counters is a different stream. All are 0 to 2**32 - 1;
    otherwise a TypeError or ValueError names the argument.

    >>> numpy_rng(1, 0).random() == numpy_rng(1, 0, 0).random()
    False
    """
    (seed,) = _words(seed=seed)
    key = _words(**{f"counter {i}": c for i, c in enumerate(counters)})
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(key)))


def named_rng(seed: int, name: str, *counters: int) -> np.random.Generator:
    """Return `numpy_rng` of a name instead of a number, such as that of an utterance.

    >>> named_rng(1, "tr/a").random() == named_rng(1, "tr/b").random()
    False
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    words = np.frombuffer(digest, dtype="<u4").tolist()
    return numpy_rng(seed, *words, *counters)


def seed_step(seed: int, rank: int, epoch: int, step: int) -> None:
    """Reseed all global generators from the position in the run (about 0.1 ms).

    They are torch's on the CPU and the accelerators (`torch.manual_seed` seeds both),
    numpy's legacy one and Python's. Call it before every training step: dropout is then
    the same after a resume as without one, and ranks draw different masks.
    """
    import torch  # imported here: processes that make a data set need not load it

    seed, *key = _words(seed=seed, rank=rank, epoch=epoch, step=step)
    sequence = np.random.SeedSequence([seed, _STEP_STREAM], spawn_key=tuple(key))
    # torch's CPU generator reads 32 bits of its seed, so one word each is enough.
    torch_word, numpy_word, python_word = sequence.generate_state(3).tolist()
    seeded = torch if torch.accelerator.is_available() else torch.default_generator
    seeded.manual_seed(torch_word)  # the first writes the stack down, up to 1 ms
    np.random.seed(numpy_word)
    random.seed(python_word)
