"""Reading hyper-parameters: HyperPyYAML, plus short variants and strict overrides.

A variant such as `mossformer2_s.yaml` names the file it builds on and lists only what
differs::

    extends: mossformer2.yaml
    channels: 384

A file may also leave a part of itself to a choice: after
`extended_by: datasets/<dataset>.yaml` the file that the key `dataset` names is laid
over it, before any variant. The result is ordinary HyperPyYAML, written whole into the
run's `hyperparams.yaml`. Every override from the command line must name a key that
exists, nested ones too: a misspelt key stops the run and is told the nearest valid one.
"""

import argparse
import dataclasses
import difflib
import io
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ruamel.yaml
import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.utils.run_opts import RunOptions

# Options that SpeechBrain declares with a default of None, hence without a type.
_UNTYPED_OPTIONS = {"optimizer_step_limit": int}


class HparamsError(ValueError):
    """A wrong key, value or file; the message is one line and names it."""


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
        that is missing or is not valid YAML.
    """
    if not arguments or arguments[0].startswith("-"):
        raise HparamsError(
            "the first argument must be a YAML file, for example "
            "`python train.py hparams/mossformer2.yaml --data_folder=...`"
        )
    options = {field.name for field in dataclasses.fields(RunOptions)}
    options -= {"param_file", "overridden_args", "data_parallel_count"}
    param_file = arguments[0]
    known, overrides = [param_file], {}
    tokens = list(arguments[1:])
    keys = set(_load_tree(param_file, _given(tokens)))
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
        elif name in keys:
            if not equals and len(following) != 1:
                raise HparamsError(f"--{name} needs one value: --{name}=VALUE")
            overrides[name] = _parse_value(name, value if equals else following[0])
        else:
            raise HparamsError(_unknown_key(f"--{name}", name, keys | options))
    return param_file, _typed_run_options(known), overrides


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
        Unknown key, missing file, a `!PLACEHOLDER` that nothing replaces, or a value
        that the object it configures refuses.
    """
    tree = _load_tree(param_file, overrides or {})
    for key, value in (overrides or {}).items():
        tree[key] = _merge(tree, key, value, path=key)
    for key, value in tree.items():
        if getattr(getattr(value, "tag", None), "value", None) == "!PLACEHOLDER":
            raise HparamsError(f"{param_file}: give a value for {key}: --{key}=...")
    stream = io.StringIO()
    ruamel.yaml.YAML().dump(tree, stream)
    # hyperpyyaml finds `!include:` files beside the stream's name.
    named = _NamedStream(stream.getvalue(), str(param_file))
    resolved = resolve_references(named).getvalue()
    try:
        return load_hyperpyyaml(resolved), resolved
    except ValueError as error:
        raise HparamsError(f"{param_file}: {_one_line(error)}") from error


class _NamedStream(io.StringIO):
    """Text that says which file it came from."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name


def _load_tree(param_file: str | Path, overrides: Mapping[str, Any]) -> Any:
    """The file's YAML tree laid over the trees of the files that it builds on.

    Of the overrides only those count that choose another file.
    """
    path = Path(param_file)
    chain = [(path, _read_tree(path))]
    while "extends" in chain[-1][1]:
        path = path.parent / chain[-1][1].pop("extends")
        chain.append((path, _read_tree(path)))
    values = {k: v for _, tree in reversed(chain) for k, v in tree.items()}
    values |= overrides
    whole = None
    for path, tree in reversed(chain):
        choice = tree.pop("extended_by", None)
        whole = tree if whole is None else _lay_over(whole, tree)
        if choice is not None:
            _lay_over(whole, _read_choice(path, choice, values))
    return whole


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


def _lay_over(base: Any, tree: Mapping[str, Any]) -> Any:
    """`base`, changed: the keys of `tree` replace its own."""
    for key, value in tree.items():
        base[key] = value
    return base


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


def _merge(tree: Mapping[str, Any], key: str, value: Any, path: str) -> Any:
    """`tree[key]` with `value` laid over it; both mappings are merged key by key."""
    if key not in tree:
        raise HparamsError(_unknown_key(path, key, tree))
    old = tree[key]
    if not isinstance(value, Mapping) or not isinstance(old, dict):
        return value
    for inner, inner_value in value.items():
        old[inner] = _merge(old, inner, inner_value, f"{path}[{inner}]")
    return old


def _unknown_key(shown: str, key: str, valid: Iterable[str]) -> str:
    names = sorted(str(name) for name in valid)
    near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"valid keys: {', '.join(names)}"
    return f"unknown key {shown}: {hint}"


def _given(tokens: list[str]) -> dict[str, str]:
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
        return ruamel.yaml.YAML().load(text)
    except ruamel.yaml.YAMLError as error:
        raise HparamsError(f"--{name}: {text!r} is not valid YAML") from error


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
