"""New values from the command line, laid over the tree of a YAML file.

A key must exist, nested ones too, and its new value must be of the right type: the one
that the recipe declares (`recipes/config/schema.py`), or that of the argument which the
YAML hands it to (`separator: !new:... {layers: !ref <layers>}`), or else the type that
its values have in the YAML files (the run's own and those that it extends).
"""

import re
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

from ruamel.yaml.comments import CommentedMap, TaggedScalar
from ruamel.yaml.tag import Tag

from modules.runtime.errors import HparamsError
from recipes.config.kinds import Kind, kind_of
from recipes.config.names import meant
from recipes.config.nodes import argument_kind, named, parameters, plain, setting_kind


def override(tree: dict, trees: Sequence[Mapping], key: str, value: Any) -> None:
    """Give a key of a YAML tree a new value, in place; a mapping changes what it names.

    `tree` is the whole one of a run, `trees` are those of its files.

    >>> tree = {"seed": 1234, "loss": {"threshold": -30.0}}
    >>> override(tree, [tree], "loss", {"threshold": -20})
    >>> tree["loss"]
    {'threshold': -20}
    """
    defaults = [plain(part[key], tree) for part in trees if key in part]
    kind = setting_kind(tree, key)
    tree[key] = _merged(tree, key, value, key, defaults, kind, tree)


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
    known, takes_all = parameters(node)
    if key not in node and key not in known and not takes_all:
        names, place = sorted({*map(str, node), *known}), path.partition("[")[0]
        found = meant(str(key), [f"{place}.{name}" for name in names])
        found = f": did you mean {found.rpartition('.')[2]}?" if found else ""
        raise HparamsError(f"unknown key {path}{found} (there are: {', '.join(names)})")
    old: Any = node.get(key)
    if isinstance(value, Mapping) and named(old) and not isinstance(old, dict):
        empty = CommentedMap()  # an object that has no arguments yet
        empty.yaml_set_ctag(old.tag)
        old = empty
    if isinstance(value, Mapping) and isinstance(old, dict):
        for inner, new in value.items():
            shown = [plain(old[inner], tree)] if inner in old else []
            inner_kind = argument_kind(old, inner)
            inner_path = f"{path}[{inner}]"
            old[inner] = _merged(old, inner, new, inner_path, shown, inner_kind, tree)
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
