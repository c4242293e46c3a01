"""Nodes of a YAML tree: their tags, their values, and what they may be."""

import inspect
import pydoc
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from recipes.config.kinds import Kind, Limits
from recipes.config.schema import LIMITS, RunSettings


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
    """Raise an HparamsError if a number of the top level is out of its range."""
    kinds = settings_class(tree).kinds()
    for key, node in tree.items():
        limits = kinds[key].limits if key in kinds else LIMITS.get(key, Limits())
        limits.check(key, plain(node, tree))


def argument_kind(node: Any, name: str) -> Kind | None:
    """Return what an argument of the object that a node names may be, if it says so."""
    function = named(node)
    if isinstance(function, type):
        function = vars(function).get("__init__", object.__init__)
    try:
        hints = typing.get_type_hints(function)
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError, NameError):
        return None
    rest = [p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD]
    hint = hints.get(name if name in parameters else "".join(rest))
    return Kind.of_annotation(hint)


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
