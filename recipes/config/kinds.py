"""What a setting may be: its types in terms of YAML, the items of a list, its range."""

import io
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
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


@dataclass(frozen=True)
class Limits:
    """The range of a number, which must be finite; None is no limit."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None

    def __str__(self) -> str:
        """What a number must do, empty where every finite one will do."""
        if self.above is not None:
            return f"be above {self.above:g}"
        if self.at_least is None:
            return ""
        if self.below is not None:
            return f"be from {self.at_least:g} to below {self.below:g}"
        return f"be {self.at_least:g} or more" if self.at_least else "not be negative"

    def admit(self, value: float) -> bool:
        """Whether a number lies in the range."""
        return (
            math.isfinite(value)
            and (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
        )


@dataclass(frozen=True)
class Kind:
    """What a setting may be; `items` are the types of a list's, if they are known."""

    types: frozenset[type]
    items: frozenset[type] = frozenset()
    limits: Limits | None = None

    @classmethod
    def of_annotation(cls, hint: Any, limits: Limits | None = None) -> Self:
        """Read an annotation; what YAML cannot say in a word is an object."""
        kinds: set[type] = set()
        items: set[type] = set()
        for part in _parts(hint):
            origin = typing.get_origin(part) or part
            if isinstance(origin, type) and issubclass(origin, str | Path):
                kinds.add(str)
            elif origin in _NAMES and origin not in (list, dict):
                kinds.add(origin)
            elif origin in (list, Sequence, tuple):
                kinds.add(list)
                for inner in typing.get_args(part):
                    items |= cls.of_annotation(inner).types
            else:
                kinds.add(dict)
        return cls(frozenset(kinds), frozenset(items), limits)

    def fitted(self, name: str, value: Any, default: Any = None) -> Any:
        """Return the value, if it is of this kind.

        Where text is wanted, a number is taken as the text that it is written as. A
        whole number will do for one that may have a fraction.

        Raises
        ------
        HparamsError
            It is of another type or out of its range.
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
        for number in value if isinstance(value, list) else [value]:
            if not isinstance(number, int | float) or self.limits is None:
                continue
            if not self.limits.admit(number):
                wanted = str(self.limits) if math.isfinite(number) else "be finite"
                raise HparamsError(f"{name}={written(value)}: must {wanted}")
        return value

    def __str__(self) -> str:
        """The types in words."""
        items = f" (each item {_any_of(self.items)})" if self.items else ""
        return _any_of(self.types).replace("a list", f"a list{items}")


def _parts(hint: Any) -> Iterable[Any]:
    """The alternatives of an annotation."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return [hint]


def _any_of(kinds: frozenset[type]) -> str:
    shown = kinds - {int} if float in kinds else kinds  # an integer is a number
    return " or ".join(name for kind, name in _NAMES.items() if kind in shown)


def _fitting(value: Any, kinds: frozenset[type]) -> Any:
    """Return the value as one of the types, or raise TypeError."""
    kind = kind_of(value)
    if kind in kinds or (kind is int and float in kinds):
        return value
    if str in kinds and kind not in (NoneType, list, dict):
        return written(value)
    raise TypeError


def kind_of(value: Any) -> type | None:
    """The type of a value in terms of YAML; None for any other."""
    if isinstance(value, Mapping):
        return dict
    return next((kind for kind in (NoneType, *_NAMES) if isinstance(value, kind)), None)


def written(value: Any) -> str:
    """A value as YAML has it, on one line."""
    if isinstance(value, list):
        return f"[{', '.join(written(item) for item in value)}]"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "null" if value is None else str(value)
    text = io.StringIO()  # ruamel remembers how a number was written
    ruamel.yaml.YAML().dump(value, text)
    return text.getvalue().split("\n")[0]
