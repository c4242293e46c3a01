"""Reading hyper-parameters: HyperPyYAML, plus short variants and strict overrides.

A variant such as `mossformer2_s.yaml` names the file it builds on and lists only what
differs::

    extends: mossformer2.yaml
    channels: 384

A file may also leave a part of itself to a choice: after
`extended_by: datasets/<dataset>.yaml` the file that the key `dataset` names is laid
over it, before any variant. The result is ordinary HyperPyYAML, written whole into the
run's `hyperparams.yaml`. Every override from the command line must name a key that
exists, nested ones too: a misspelt key stops the run and is told the nearest valid one,
a value of the wrong type which one is expected (`recipes/config/overrides.py`).
"""

import argparse
import copy
import dataclasses
import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ruamel.yaml
import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.utils.run_opts import RunOptions

from modules.runtime.devices import check_device
from modules.runtime.errors import HparamsError
from recipes.config.overrides import nearest, override

# Options that SpeechBrain declares with a default of None, hence without a type.
_UNTYPED_OPTIONS = {"optimizer_step_limit": int}


def parse_command_line(
    arguments: list[str],
) -> tuple[str, RunOptions, dict[str, Any]]:
    """Split a command line into YAML file, run options and YAML overrides.

    Arguments
    ---------
    arguments : list[str]
        As typed: `file.yaml --precision=bf16 --num_spks=3`.

    Returns
    -------
    param_file : str
        The YAML file.
    run_opts : RunOptions
        SpeechBrain's run options, typed.
    overrides : dict[str, Any]
        YAML keys and their new values.

    Raises
    ------
    HparamsError
        An option that is neither a run option nor a key of the YAML file; a value
        that is missing or is not valid YAML; a device that is not there.
    """
    if not arguments or arguments[0].startswith("-"):
        raise HparamsError(
            "the first argument must be a YAML file, for example "
            "`python train.py hparams/mossformer2.yaml --data_folder=...` (--help "
            "says more)"
        )
    options = {field.name for field in dataclasses.fields(RunOptions)}
    options -= {"param_file", "overridden_args", "data_parallel_count"}
    param_file = arguments[0]
    known, overrides = [param_file], {}
    tokens = list(arguments[1:])
    tree = _whole(load_trees(param_file, given_options(tokens)))
    while tokens:
        token = tokens.pop(0)
        if not token.startswith("--"):
            raise HparamsError(f"unexpected argument {token!r}; write --key=value")
        name, equals, value = token[2:].partition("=")
        following = []
        while not equals and tokens and not tokens[0].startswith("--"):
            following.append(tokens.pop(0))
        if name in options:
            known += [token, *following]
        elif name in tree:
            if not equals and len(following) != 1:
                raise HparamsError(f"--{name} needs one value: --{name}=VALUE")
            overrides[name] = _parse_value(name, value if equals else following[0])
        else:
            raise HparamsError(_unknown_option(name, tree, options))
    run_opts = _typed_run_options(known)
    if run_opts.device is not None:
        check_device(run_opts.device)
    return param_file, run_opts, overrides


def load_hparams(
    param_file: str | Path, overrides: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], str]:
    """Load a YAML file, its `extends` chain and its overrides.

    Arguments
    ---------
    param_file : str | Path
        A HyperPyYAML file. It is code: `!new:` and `!apply:` run what they name.
    overrides : Mapping[str, Any] | None
        New values; a nested mapping changes only the keys it names.

    Returns
    -------
    hparams : dict[str, Any]
        The loaded objects.
    resolved : str
        The same as YAML text with every reference filled in.

    Raises
    ------
    HparamsError
        Unknown key, missing file, a `!PLACEHOLDER` that nothing replaces, a value of
        the wrong type, or one that the object it configures refuses.
    """
    tree = load_tree(param_file, overrides)
    for key, value in tree.items():
        if getattr(getattr(value, "tag", None), "value", None) == "!PLACEHOLDER":
            raise HparamsError(f"{param_file}: give a value for {key}: --{key}=...")
    stream = io.StringIO()
    ruamel.yaml.YAML().dump(tree, stream)
    # hyperpyyaml finds `!include:` files beside the stream's name.
    named = _NamedStream(stream.getvalue(), str(param_file))
    try:
        resolved = resolve_references(named).getvalue()
        return load_hyperpyyaml(resolved), resolved
    except ValueError as error:
        raise HparamsError(f"{param_file}: {_one_line(error)}") from error


class _NamedStream(io.StringIO):
    """Text that says which file it came from."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name


def load_tree(
    param_file: str | Path, overrides: Mapping[str, Any] | None = None
) -> Any:
    """The file's YAML tree, over those of the files it builds on, with new values."""
    trees = load_trees(param_file, overrides)
    tree = _whole(trees)
    for key, value in (overrides or {}).items():
        override(tree, trees, key, value)
    return tree


def load_trees(
    param_file: str | Path, overrides: Mapping[str, Any] | None = None
) -> list[Any]:
    """The trees of the files that it builds on and of the file itself, which is last.

    Of the overrides only those count that choose another file.
    """
    path = Path(param_file)
    chain = [(path, _read_tree(path))]
    while "extends" in chain[-1][1]:
        path = path.parent / chain[-1][1].pop("extends")
        chain.append((path, _read_tree(path)))
    values = {k: v for _, tree in reversed(chain) for k, v in tree.items()}
    values |= overrides or {}
    trees = []
    for path, tree in reversed(chain):
        choice = tree.pop("extended_by", None)
        trees.append(tree)
        if choice is not None:
            trees.append(_read_choice(path, choice, values))
    return trees


def _read_tree(path: Path) -> Any:
    """The YAML tree of one file."""
    if not path.is_file():
        raise HparamsError(f"{path}: no such YAML file")
    try:
        tree = ruamel.yaml.YAML().load(path.read_text(encoding="utf-8"))
    except ruamel.yaml.YAMLError as error:
        raise HparamsError(f"{path}: not valid YAML ({_one_line(error)})") from error
    if not isinstance(tree, dict):
        raise HparamsError(f"{path}: must be a mapping of keys to values")
    return tree


def _whole(trees: Sequence[Any]) -> Any:
    """The trees laid one over the other: the keys of a later one replace its own."""
    whole, *variants = copy.deepcopy(list(trees))
    for variant in variants:
        for key, value in variant.items():
            whole[key] = value
    return whole


def _read_choice(path: Path, choice: str, values: Mapping[str, Any]) -> Any:
    """The tree of the file that `FOLDER/<key>.yaml` in `path` stands for."""
    folder, _, key = choice.removesuffix(">.yaml").partition("/<")
    folder = path.parent / folder
    valid = sorted(file.stem for file in folder.glob("*.yaml"))
    if values[key] not in valid:
        raise HparamsError(
            f"{key} is {values[key]!r}, expected one of {', '.join(valid)} ({folder}/)"
        )
    return _read_tree(folder / f"{values[key]}.yaml")


def _unknown_option(name: str, tree: Mapping[str, Any], options: set[str]) -> str:
    """What to say of an option that neither the file nor SpeechBrain has."""
    holders = [key for key, value in tree.items() if isinstance(value, dict)]
    for holder in holders:
        if name in tree[holder]:
            return f"unknown key --{name}: did you mean --{holder}='{{{name}: ...}}'?"
    return f"unknown key --{name}: {nearest(name, [*tree, *options])}"


def given_options(tokens: list[str]) -> dict[str, str]:
    """`--key=value` and `--key value` as they stand; what is valid is not known yet."""
    given = {}
    for token, following in zip(tokens, [*tokens[1:], ""], strict=False):
        name, equals, value = token.removeprefix("--").partition("=")
        if token.startswith("--"):
            given[name] = value if equals else following
    return given


def _parse_value(name: str, text: str) -> Any:
    """A command-line value, read by the same rules as one in the YAML file."""
    try:
        value = ruamel.yaml.YAML().load(text)
    except ruamel.yaml.YAMLError as error:
        raise HparamsError(f"--{name}: {text!r} is not valid YAML") from error
    # A path may hold ` #`, and there is nobody to write a comment to.
    is_cut = isinstance(value, str) and " #" in text and text[:1] not in "'\""
    value = text if is_cut else value
    # A shell expands only the `~` that begins a word.
    is_home = isinstance(value, str) and value.startswith("~/")
    return os.path.expanduser(value) if is_home else value


def _typed_run_options(arguments: list[str]) -> RunOptions:
    """SpeechBrain's parser, with its usage errors as exceptions and its gaps typed."""
    captured = io.StringIO()
    stderr, sys.stderr = sys.stderr, captured
    try:
        _, run_opts, _ = sb.parse_arguments(arguments)
    except (SystemExit, argparse.ArgumentError) as error:
        message = captured.getvalue().strip().splitlines()
        raise HparamsError(message[-1] if message else str(error)) from error
    finally:
        sys.stderr = stderr
    changes = {}
    for name, kind in _UNTYPED_OPTIONS.items():
        value = getattr(run_opts, name)
        try:
            changes[name] = None if value is None else kind(value)
        except ValueError:
            raise HparamsError(
                f"--{name}: {value!r} is not of type {kind.__name__}"
            ) from None
    return dataclasses.replace(run_opts, **changes)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
