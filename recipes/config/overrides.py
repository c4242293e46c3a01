"""New values from the command line, laid over the tree of a YAML file.

A key must exist, nested ones too, and its new value must be of the right type: the one
that the recipe declares (`recipes/config/schema.py`), or that of the argument which the
YAML hands it to (`separator: !new:... {layers: !ref <layers>}`), or else the type that
its values have in the YAML files (the run's own and those that it extends).
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Any

from ruamel.yaml.comments import TaggedScalar
from ruamel.yaml.tag import Tag

from modules.runtime.errors import HparamsError
from recipes.config.kinds import Kind, kind_of
from recipes.config.nodes import argument_kind, plain, setting_kind


def override(tree: dict, trees: Sequence[Mapping], key: str, value: Any) -> None:
    """Give a key of a YAML tree a new value, in place.

    Arguments
    ---------
    tree : dict
        The whole tree of a run.
    trees : Sequence[Mapping]
        Those of its files, one by one.
    key : str
        A key of the top level.
    value : Any
        A mapping changes only the keys that it names.

    Raises
    ------
    HparamsError
        The key does not exist; the value is of another type or out of its range.

    Example
    -------
    >>> tree = {"seed": 1234, "loss": {"threshold": -30.0}}
    >>> override(tree, [tree], "loss", {"threshold": -20})
    >>> tree["loss"]
    {'threshold': -20}
    """
    defaults = [plain(part[key], tree) for part in trees if key in part]
    kind = setting_kind(tree, key)
    tree[key] = _merged(tree, key, value, key, defaults, kind, tree)


def nearest(key: str, names: Iterable[str]) -> str:
    """Return which of the names was probably meant, as a remark in an error message.

    Example
    -------
    >>> nearest("PATIENSE", ["factor", "patience"])
    'did you mean patience?'
    >>> nearest("q", ["factor", "patience"])
    'the nearest is factor'
    """

    def likeness(name: str) -> float:
        return difflib.SequenceMatcher(None, key.lower(), name.lower()).ratio()

    best = max(sorted(names), key=likeness)
    return (
        f"did you mean {best}?" if likeness(best) >= 0.4 else f"the nearest is {best}"
    )


def _merged(
    node: Mapping,
    key: str,
    value: Any,
    path: str,
    defaults: Sequence[Any],
    kind: Kind | None,
    tree: Mapping,
) -> Any:
    """Return the new value of `node[key]`, which messages call `path`."""
    if key not in node:
        names = sorted(map(str, node))
        raise HparamsError(
            f"unknown key {path}: {nearest(str(key), names)} (there are: "
            f"{', '.join(names)})"
        )
    old = node[key]
    if isinstance(value, Mapping) and isinstance(old, dict):
        for inner, new in value.items():
            known = [plain(old[inner], tree)] if inner in old else []
            inner_kind = argument_kind(old, inner)
            inner_path = f"{path}[{inner}]"
            old[inner] = _merged(old, inner, new, inner_path, known, inner_kind, tree)
        return old
    if isinstance(value, Mapping) and plain(old, tree) == {}:
        raise HparamsError(
            f"unknown key {path}[{next(iter(value), '')}]: the file gives {path} no "
            "keys; name them in a YAML file that extends it"
        )
    kind = kind or _kind_of_values(defaults)
    shown = [d for d in defaults if d not in (None, ...) and not isinstance(d, dict)]
    value = value if kind is None else kind.fitted(path, value, *shown[-1:])
    return _referring(value)


def _referring(value: Any) -> Any:
    """Return a value in whose texts `<key>` stands for that of a key, as in a file."""
    if isinstance(value, list):
        return [_referring(item) for item in value]
    if not (isinstance(value, str) and re.search("<[^<>]+>", value)):
        return value
    scalar = TaggedScalar(value)
    scalar.yaml_set_ctag(Tag(suffix="!ref"))
    return scalar


def _kind_of_values(values: Sequence[Any]) -> Kind | None:
    """Return the types of a key's values in the files; None if these do not tell."""
    types = frozenset(map(kind_of, values))
    lists = [value for value in values if isinstance(value, list)]
    items = frozenset(kind_of(item) for items in lists for item in items)
    if object in types or types <= {NoneType}:
        return None
    return Kind(types, frozenset() if object in items else items)
