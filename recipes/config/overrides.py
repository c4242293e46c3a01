"""New values from the command line, laid over the tree of a YAML file.

A key must exist, nested ones too, and its new value must be of the type that the key
has in the YAML files (the run's own and those that it extends). A number that may have
a fraction is written with a point there (`clip_grad_norm: 5.0`); an integer will do
for it.
"""

import difflib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, get_args

import ruamel.yaml

from modules.runtime.errors import HparamsError

# Types that the YAML files do not show: of a key that may be null, or is computed.
_TYPES: dict[str, Any] = {
    "N_epochs": int,
    "base_folder_dm": str | None,
    "data_folder": str,
    "eval_chunk_seconds": float | None,
    "examples_per_epoch": int | None,
    "lora_alpha": float | None,
    "lora_max_rank": int | None,
    "pretrained": str | None,
    "segment_seconds": float | None,
    "speed_changes": list | None,
    "train_stems": str | None,
    "phase": int | None,
    "test_folder": str | None,
    "train_set": str | None,
    "truth": str | None,
}

# Numbers that nothing works without.
_POSITIVE = {
    *("N_epochs", "batch_size", "eval_batch_size", "examples_per_epoch"),
    *("log_every", "keep_checkpoints", "lr", "sample_rate", "num_spks"),
    *("segment_seconds", "stride_seconds", "eval_chunk_seconds"),
}

_CAN_BE_OFF = {"augmentation", "lr_scheduler"}  # objects that nothing needs

_NOT_NEGATIVE = {"average_last", "shifts", "seed"}

_NAMES = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "keys and values, as {key: value}",
    NoneType: "null",
}


def override(tree: dict, trees: Sequence[Mapping], key: str, value: Any) -> None:
    """Give a key of a YAML tree a new value, in place.

    Arguments
    ---------
    tree : dict
        Of the run's file, with those that it extends below it.
    trees : Sequence[Mapping]
        These files one by one: their values of the key say its type.
    key : str
        Of the top level.
    value : Any
        A mapping changes only the keys that it names.

    Raises
    ------
    HparamsError
        There is no such key; the value is of another type, or not above 0.

    Example
    -------
    >>> tree = {"seed": 1234, "loss": {"threshold": -30.0}}
    >>> override(tree, [tree], "loss", {"threshold": -20})
    >>> tree["loss"]
    {'threshold': -20}
    """
    defaults = [_plain(part[key], tree) for part in trees if key in part]
    tree[key] = _merged(tree, key, value, key, defaults, tree)


def nearest(key: str, names: Iterable[str]) -> str:
    """Which of the names was probably meant, as a remark in an error message.

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
    node: Mapping, key: str, value: Any, path: str, defaults: Sequence, tree: Mapping
) -> Any:
    """`node[key]` with `value` laid over it; both mappings are merged key by key."""
    if key not in node:
        names = sorted(str(name) for name in node)
        raise HparamsError(
            f"unknown key {path}: {nearest(str(key), names)} (there are: "
            f"{', '.join(names)})"
        )
    old = node[key]
    if isinstance(value, Mapping) and isinstance(old, dict):
        for inner, new in value.items():
            known = [_plain(old[inner], tree)] if inner in old else []
            inner_path = f"{path}[{inner}]"
            old[inner] = _merged(old, inner, new, inner_path, known, tree)
        return old
    if isinstance(value, Mapping) and defaults[-1:] == [{}]:
        raise HparamsError(
            f"unknown key {path}[{next(iter(value), '')}]: the file gives {path} no "
            "keys; name them in a YAML file that extends it"
        )
    return _typed(path, value, defaults)


def _typed(path: str, value: Any, defaults: Sequence[Any]) -> Any:
    """`value`, if it is of the type that the key's values have in the YAML files.

    Where text is wanted, a number is taken as the text that it is written as.
    """
    kinds = {_kind(default) for default in defaults}
    if path in _TYPES:
        kinds = set(get_args(_TYPES[path]) or [_TYPES[path]])
    elif None in kinds or kinds <= {NoneType}:
        return value
    elif path in _CAN_BE_OFF:
        kinds.add(NoneType)
    lists = [default for default in defaults if isinstance(default, list)]
    item_kinds = {_kind(item) for items in lists for item in items}
    try:
        value = _fitting(value, kinds)
        if isinstance(value, list) and item_kinds and None not in item_kinds:
            value = [_fitting(item, item_kinds) for item in value]
    except TypeError:
        names = dict(_NAMES)
        if item_kinds and None not in item_kinds:
            names[list] += f" (each item {_any_of(item_kinds, names)})"
        wanted = _any_of(kinds, names)
        shown = [default for default in defaults if default not in (None, ..., {})]
        hint = f", as its default {written(shown[-1])}" if shown else ""
        raise HparamsError(
            f"{path}={written(value)}: expected {wanted}{hint}"
        ) from None
    if path in _POSITIVE and value is not None and not value > 0:
        raise HparamsError(f"{path}={written(value)}: must be above 0")
    if path in _NOT_NEGATIVE and not value >= 0:
        raise HparamsError(f"{path}={written(value)}: must not be negative")
    return value


def _any_of(kinds: set[type], names: Mapping[type, str]) -> str:
    if float in kinds:
        kinds = kinds - {int}  # an integer is a number
    return " or ".join(name for kind, name in names.items() if kind in kinds)


def _fitting(value: Any, kinds: set[type | None]) -> Any:
    """The value as one of the types."""
    kind = _kind(value)
    if kind in kinds or (kind is int and float in kinds):
        return value
    if str in kinds and kind not in (NoneType, list, dict):
        return written(value)
    raise TypeError


def _kind(value: Any) -> type | None:
    """The type of a value in terms of YAML; None for any other."""
    return next((kind for kind in _KINDS if isinstance(value, kind)), None)


# A bool is an int for Python.
_KINDS = (NoneType, bool, int, float, str, list, dict)


def _plain(node: Any, tree: Mapping) -> Any:
    """The value behind a node of a YAML tree; Ellipsis where only loading tells it."""
    tag = getattr(getattr(node, "tag", None), "value", None) or ""
    if tag.startswith(("!new:", "!name:")):
        return {}
    if tag == "!ref":
        whole = re.fullmatch(r"<(\w+)>", node.value)
        if whole and whole[1] in tree:
            return _plain(tree[whole[1]], tree)
        # Letters beside the references make a path; else it may be arithmetic.
        is_text = re.search("[A-Za-z]", re.sub("<[^>]*>", "", node.value))
        return node.value if is_text else ...
    if tag:
        return ...
    return [_plain(item, tree) for item in node] if isinstance(node, list) else node


def written(value: Any) -> str:
    """A value as YAML has it, on one line."""
    if isinstance(value, list):
        return f"[{', '.join(written(item) for item in value)}]"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "null" if value is None else str(value)
    text = io.StringIO()  # ruamel remembers how a number was written
    ruamel.yaml.YAML().dump(value, text)
    return text.getvalue().split("\n")[0]
