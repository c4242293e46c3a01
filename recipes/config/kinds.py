"""What a setting may be: its types in terms of YAML, the items of a list, its range."""

import io
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Self

import ruamel.yaml

from modules.runtime.errors import HparamsError

# In the order of messages. A bool is an int for Python, so that it comes first.
_NAMES: dict[type, str] = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "keys and values, as {key: value}",
    NoneType: "null",
}


#: Numbers become tensors of 32 bits.
FLOAT32_LIMIT = 3e38

_ANNOTATIONS = {kind: kind for kind in _NAMES} | {Path: str, Mapping: dict}


@dataclass(frozen=True)
class Limits:
    """The range of a number, which must be finite; None is no limit."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    other_than: float | None = None

    def __str__(self) -> str:
        """Return the range in words, empty where every finite number will do."""
        words = {
            "above": self.above,
            "from": self.at_least,
            "to below" if self.at_least is not None else "below": self.below,
            "to" if self.at_least is not None else "at most": self.at_most,
            "other than": self.other_than,
        }
        parts = [
            f"{word} {value:.12g}" for word, value in words.items() if value is not None
        ]
        if self.at_least is not None and len(parts) == 1:
            return f"{self.at_least:.12g} or more"
        return (" " if self.at_least is not None else " and ").join(parts)

    def check(self, name: str, value: Any) -> None:
        """Raise an HparamsError if a number, or one in a list, is out of the range."""
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            is_finite = abs(number) < FLOAT32_LIMIT
            wanted = [] if is_finite else ["finite"]
            if not (is_finite and self._admit(number)):
                wanted += [str(self)] if str(self) else []
                raise HparamsError(
                    f"{name}={written(value)}: must be {' and '.join(wanted)}"
                )

    def _admit(self, value: float) -> bool:
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
            and value != self.other_than
        )


@dataclass(frozen=True)
class Kind:
    """What a setting may be; `items` are the types in a list, empty if not known."""

    types: frozenset[type]
    items: frozenset[type] = frozenset()
    limits: Limits = Limits()

    @classmethod
    def of_annotation(cls, hint: Any, limits: Limits = Limits()) -> Self | None:
        """Read an annotation; None if YAML cannot write what it names."""
        kinds: set[type] = set()
        items: set[type] = set()
        is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        for part in typing.get_args(hint) if is_union else [hint]:
            origin = typing.get_origin(part) or part
            if origin is typing.Literal:
                kinds |= {kind_of(choice) for choice in typing.get_args(part)}
            elif origin in (list, tuple, Sequence):
                kinds.add(list)
                for inner in map(cls.of_annotation, typing.get_args(part)):
                    items |= {object} if inner is None else inner.types
            elif origin in _ANNOTATIONS:
                kinds.add(_ANNOTATIONS[origin])
        known = frozenset() if object in items else frozenset(items)
        return None if kinds <= {NoneType} else cls(frozenset(kinds), known, limits)

    def fitted(self, name: str, value: Any, default: Any = None) -> Any:
        """Return the value, or raise an HparamsError if it is not of this kind.

        A whole number will do for one that may have a fraction. Where text is wanted, a
        number is taken as the text that it is written as.
        """
        try:
            value = _fitting(value, self.types)
            if isinstance(value, list) and self.items:
                value = [_fitting(item, self.items) for item in value]
        except TypeError:
            hint = "" if default is None else f", as its default {written(default)}"
            raise HparamsError(
                f"{name}={written(value)}: expected {self}{hint}"
            ) from None
        self.limits.check(name, value)
        return value

    def __str__(self) -> str:
        """Return the types in words, with the range of a number."""
        names = dict(_NAMES)
        if limits := str(self.limits):
            limits = f" of {limits}" if limits.endswith("or more") else f" {limits}"
            names[int] += limits
            names[float] += limits
        if self.items:
            names[list] += f" (each item {_any_of(self.items, names)})"
        return _any_of(self.types, names)


def _any_of(kinds: frozenset[type], names: Mapping[type, str]) -> str:
    shown = kinds - {int} if float in kinds else kinds  # an integer is a number
    return " or ".join(name for kind, name in names.items() if kind in shown)


def _fitting(value: Any, kinds: frozenset[type]) -> Any:
    """Return the value as one of the types, or raise TypeError."""
    kind = kind_of(value)
    if kind in kinds or (kind is int and float in kinds):
        return value
    if str in kinds and kind not in (NoneType, list, dict):
        return written(value)
    raise TypeError


def kind_of(value: Any) -> type:
    """Return the type of a value in terms of YAML; `object` for any other."""
    return next((kind for kind in _NAMES if isinstance(value, kind)), object)


def written(value: Any) -> str:
    """A value as YAML has it, on one line."""
    if isinstance(value, list):
        return f"[{', '.join(written(item) for item in value)}]"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "null" if value is None else str(value)
    text = io.StringIO()  # ruamel remembers how a number was written
    ruamel.yaml.YAML().dump(value, text)
    return text.getvalue().split("\n")[0]
