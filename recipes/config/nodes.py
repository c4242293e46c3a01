"""Nodes of a YAML tree: their tags, their values, and what they may be."""

import inspect
import pydoc
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import NoneType
from typing import Any

from recipes.config.kinds import Kind, Limits, kind_of
from recipes.config.schema import ARGUMENTS, LIMITS, RunSettings


def tag_of(node: Any) -> str:
    """Return a node's tag, as `!ref` or `!new:package.Class`, or an empty text."""
    return getattr(getattr(node, "tag", None), "value", None) or ""


def plain(node: Any, tree: Mapping) -> Any:
    """Return a node's value; {} for an object, ... where only loading tells it."""
    tag = tag_of(node)
    if tag.startswith(("!new:", "!name:")):
        return {}
    if tag == "!ref":
        whole = re.fullmatch(r"<(\w+)>", node.value)
        if whole and whole[1] in tree:
            return plain(tree[whole[1]], tree)
        # Letters beside the references make a path; else it may be arithmetic.
        is_text = re.search("[A-Za-z]", re.sub("<[^>]*>", "", node.value))
        return node.value if is_text else ...
    if tag:
        return ...
    return [plain(item, tree) for item in node] if isinstance(node, list) else node


def named(node: Any) -> Any:
    """Return what an object's node names; None where importing it fails."""
    action, _, name = tag_of(node).partition(":")
    if action not in ("!new", "!name", "!apply"):
        return None
    try:
        return pydoc.locate(name)
    except pydoc.ErrorDuringImport:
        return None


def settings_class(tree: Mapping) -> type[RunSettings]:
    """Return the class of the settings that the tree's recipe reads."""
    return getattr(named(tree.get("recipe")), "settings_class", RunSettings)


def check_ranges(tree: Mapping) -> None:
    """Raise an HparamsError if a number is out of the range that is known for it."""
    kinds = settings_class(tree).kinds()
    for key, node in tree.items():
        limits = kinds[key].limits if key in kinds else LIMITS.get(key, Limits())
        limits.check(key, plain(node, tree))
    for key, node in tree.items():
        for item in _objects(node):
            for name, value in item.items() if _is_known(item) else ():
                ARGUMENTS.get(name, Limits()).check(
                    f"{key}[{name}]", plain(value, tree)
                )


def _is_known(node: Any) -> bool:
    """Whether the ranges of `ARGUMENTS` hold for an object."""
    ours = ("modules.", "recipes.", "data_prep.", "torch.optim.", "speechbrain.nnet.")
    return tag_of(node).partition(":")[2].startswith(ours)


def parameters(node: Any) -> tuple[Mapping[str, inspect.Parameter], bool]:
    """Return the parameters of what a node names, and whether it takes any name."""
    try:
        known = inspect.signature(named(node)).parameters
    except (TypeError, ValueError):
        return {}, False
    fixed = {n: p for n, p in known.items() if p.kind is not p.VAR_POSITIONAL}
    by_name = {n: p for n, p in fixed.items() if p.kind is not p.VAR_KEYWORD}
    return by_name, len(by_name) < len(fixed)


def argument_kind(node: Any, name: str) -> Kind | None:
    """Return what an argument of the object that a node names may be, if it says so.

    Without an annotation its default tells.
    """
    function = named(node)
    if isinstance(function, type):
        function = vars(function).get("__init__", object.__init__)
    try:
        hints = typing.get_type_hints(function)
        known = inspect.signature(function).parameters
    except (TypeError, ValueError, NameError):
        return None
    rest = [p.name for p in known.values() if p.kind is p.VAR_KEYWORD]
    hint = hints.get(name if name in known else "".join(rest))
    if hint is None and name in known and known[name].default is not known[name].empty:
        default = kind_of(known[name].default)
        hint = None if default in (object, NoneType) else default
    limits = ARGUMENTS.get(name, Limits()) if _is_known(node) else Limits()
    return Kind.of_annotation(hint, limits)


def setting_kind(tree: Mapping, key: str) -> Kind | None:
    """Return what a key of the top level may be, if that is said anywhere.

    The recipe's settings class declares it, or an object that takes `!ref <key>` says
    so in its signature.
    """
    if (declared := settings_class(tree).kinds().get(key)) is not None:
        return declared
    limits = LIMITS.get(key, Limits())
    for node in _objects(tree):
        for name, argument in node.items():
            if tag_of(argument) == "!ref" and argument.value == f"<{key}>":
                kind = argument_kind(node, name)
                if kind is not None:
                    return replace(kind, limits=limits)
    return None


def _objects(node: Any) -> Iterator[Mapping]:
    """Every object below a node that has arguments."""
    if isinstance(node, Mapping):
        if tag_of(node):
            yield node
        for value in node.values():
            yield from _objects(value)
