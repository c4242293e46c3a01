"""The fault bench: a function per reliability target, found by its number.

A target says in one line what must be true, and what stock software (SpeechBrain 1.1.2
and its separation recipe) was measured to do. Its function runs the faults and returns
the figure that was reached.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Bench:
    """A folder for the case, and how much it shall do.

    `nightly` asks for many kills, `brief` for the fewest that still show the fault.
    """

    folder: Path
    nightly: bool = False
    brief: bool = False

    def count(self, brief: int, short: int, nightly: int) -> int:
        """Return how often to repeat, by the length of the run."""
        return nightly if self.nightly else brief if self.brief else short


@dataclass
class Outcome:
    """The figure that a case reached and what fell short of the target."""

    figure: str = ""
    failures: list[str] = field(default_factory=list)

    def expect(self, condition: object, failure: str) -> bool:
        """Note a failure unless the condition holds; return whether it does."""
        if not condition:
            self.failures.append(" ".join(failure.split()))
        return bool(condition)

    @property
    def passed(self) -> bool:
        """Return whether nothing fell short."""
        return not self.failures


Case = Callable[[Bench], Outcome]


@dataclass(frozen=True)
class Target:
    """A row of the bench."""

    name: str
    statement: str
    stock: str
    run: Case


TARGETS: dict[str, Target] = {}


def target(name: str, statement: str, stock: str) -> Callable[[Case], Case]:
    """Register a case under the number of its target.

    Arguments
    ---------
    name : str
        Such as "R2".
    statement : str
        What must be true, in one line.
    stock : str
        What stock software was measured to do.
    """

    def register(case: Case) -> Case:
        TARGETS[name] = Target(name, statement, stock, case)
        return case

    return register
