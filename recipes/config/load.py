"""Reading a run's settings: HyperPyYAML, plus short variants and strict overrides.

A variant names the file that it builds on, or a list of them, of which a later one
wins, and says only what differs. A mapping without a tag changes only the arguments
that it names; as an argument, `!below` is the object that it takes the place of::

    extends: mossformer2.yaml
    channels: 384
    separator: {kernel_size: 32}
    augmentation: !new:mine.Louder
        augmentation: !below

`extended_by: datasets/<dataset>.yaml` lays over a file the block that the key `dataset`
names, or the file, where its value is the path of one; a variant comes after it. The
result is ordinary HyperPyYAML, written whole into the run's `hyperparams.yaml`. Every
override from the command line is checked (`recipes/config/overrides.py`).
"""

import argparse
import contextlib
import copy
import dataclasses
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ruamel.yaml
import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml.comments import CommentedMap
from speechbrain.utils.run_opts import RunOptions

from modules.runtime.devices import check_device
from modules.runtime.errors import HparamsError
from recipes.config.kinds import Kind
from recipes.config.names import NOTES, VALUES, meant
from recipes.config.nodes import check_ranges, parameters, tag_of
from recipes.config.overrides import override
from recipes.config.schema import LIMITS

#: What the launcher before torchrun gives to a script.
LAUNCH = ("--local-rank", "--local_rank")

#: Objects whose arguments people set; a message about an unknown key knows them.
OBJECTS = {"separator", "optimizer", "lr_scheduler", "augmentation", "select", "losses"}


class Run(NamedTuple):
    """SpeechBrain's run options, the objects of the YAML, and the YAML's whole text."""

    run_opts: RunOptions
    hparams: dict[str, Any]
    resolved: str  # with every reference filled in


def load(arguments: Sequence[str]) -> Run:
    """Read a command line and the YAML files that it names, once each.

    The arguments are as typed: `file.yaml --precision=bf16 --num_spks=3`. The YAML is
    code: `!new:` and `!apply:` run what they name. A nested mapping, as
    `--lr_scheduler={patience: 3}`, changes only the keys that it names. An
    `HparamsError` says what is unknown, missing, of the wrong type or out of range.
    """
    layers, run_opts, overrides = parse_command_line(arguments)
    return Run(run_opts, *_build(layers, overrides))


def load_hparams(
    param_file: str | Path, overrides: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], str]:
    """Load a YAML file over those that it builds on, with new values.

    Return its objects, and the same as YAML text with every reference filled in.
    """
    return _build(Layers(param_file, overrides or {}), overrides or {})


class Layers:
    """The YAML trees of a file and of those that it builds on, each read once.

    The values `given` choose the blocks of `extended_by`.
    """

    def __init__(self, param_file: str | Path, given: Mapping[str, Any]) -> None:
        self.path = Path(param_file)
        chain = list(_read_chain(self.path))
        values = {k: v for _, tree in chain for k, v in tree.items()} | dict(given)
        self.trees: list[Any] = []  # the run's own file is last
        self.chosen: dict[str, str] = {}  # names of blocks by the keys that chose them
        for path, tree in chain:
            block = tree.pop("extended_by", None)
            self.trees.append(tree)
            if block is not None:
                self.trees.append(_read_tree(self._block(path.parent, block, values)))
        self.whole = copy.deepcopy(self.trees[0])
        for tree in self.trees[1:]:
            for key, value in copy.deepcopy(tree).items():
                self.whole[key] = _laid_over(self.whole.get(key), value)

    def overridden(self, overrides: Mapping[str, Any]) -> Any:
        """Return the whole tree with new values."""
        tree = copy.deepcopy(self.whole)
        for key, value in {**overrides, **self.chosen}.items():
            override(tree, self.trees, key, value)
        return tree

    def _block(self, folder: Path, block: str, values: Mapping[str, Any]) -> Path:
        """Return the file that `FOLDER/<key>.yaml` stands for."""
        pattern = folder / block
        key, folder = pattern.stem.strip("<>"), pattern.parent
        name = str(values[key])
        if name.endswith(".yaml"):
            path = Path(name).expanduser()
            self.chosen[key] = path.stem  # for the name of the run's folder
            return path
        self.chosen[key] = name
        valid = sorted(file.stem for file in folder.glob("*.yaml"))
        if name not in valid:
            raise HparamsError(
                f"{key} is {name!r}, expected one of {', '.join(valid)} ({folder}/) or "
                "the path of a YAML file"
            )
        return folder / f"{name}.yaml"


def _read_chain(path: Path, above: Sequence[Path] = ()) -> Iterator[tuple[Path, Any]]:
    """Read the files that a file builds on, each before those built on it."""
    above = [*above, path.resolve()]
    tree = _read_tree(path)
    parents = tree.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(p, str) for p in parents):
        raise HparamsError(f"{path}: extends must name a file, or a list of them")
    for parent in parents:
        if (path.parent / parent).resolve() in above:
            raise HparamsError(f"{path}: extends {parent}, which builds on {path.name}")
        yield from _read_chain(path.parent / parent, above)
    yield path, tree


def _read_tree(path: Path) -> Any:
    """Return the YAML tree of one file."""
    if not path.is_file():
        raise HparamsError(f"{path}: no such YAML file")
    try:
        tree = ruamel.yaml.YAML().load(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise HparamsError(
            f"{path}: is not in UTF-8 (byte {error.start}); save it in this encoding"
        ) from error
    except ruamel.yaml.YAMLError as error:
        raise HparamsError(f"{path}: not valid YAML ({_one_line(error)})") from error
    if not isinstance(tree, dict):
        raise HparamsError(f"{path}: must be a mapping of keys to values")
    return tree


def _laid_over(old: Any, new: Any) -> Any:
    """Return a key's new value over that of the files below."""
    if not isinstance(new, CommentedMap):
        return new
    if tag_of(new):
        wrapping = [name for name, value in new.items() if tag_of(value) == "!below"]
        new.update(dict.fromkeys(wrapping, old))
        return new
    if not tag_of(old).startswith(("!new:", "!name:", "!apply:")):
        return new
    if isinstance(old, dict):
        return _merged(old, new)
    new.yaml_set_ctag(old.tag)  # an object that had no arguments
    return new


def _merged(old: dict, new: dict) -> dict:
    """Return arguments with new ones; mappings among them are merged as well."""
    for key, value in new.items():
        both = isinstance(value, dict) and isinstance(old.get(key), dict)
        old[key] = _merged(old[key], value) if both and not tag_of(value) else value
    return old


def _to_blocks(node: Any) -> bool:
    """Write what has a key with a space as a block: a long line may break in a key."""
    items = node.values() if isinstance(node, dict) else node
    inside = [_to_blocks(item) for item in items if isinstance(item, dict | list)]
    keys = node if isinstance(node, dict) else ()
    is_block = any(inside) or any(" " in str(key) for key in keys)
    if is_block and hasattr(node, "fa"):
        node.fa.set_block_style()
    return is_block


def _build(layers: Layers, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Load the objects; see `load_hparams`."""
    tree = layers.overridden(overrides)
    for key, value in tree.items():
        if tag_of(value) == "!PLACEHOLDER":
            raise HparamsError(f"{layers.path}: give a value for {key}: --{key}=...")
    check_ranges(tree)
    _to_blocks(tree)
    stream = io.StringIO()
    ruamel.yaml.YAML().dump(tree, stream)
    stream.seek(0)
    stream.name = str(layers.path)  # `!include:` looks for files beside it
    try:
        resolved = resolve_references(stream).getvalue()
        return load_hyperpyyaml(resolved), resolved
    except ValueError as error:
        raise HparamsError(f"{layers.path}: {_one_line(error)}") from error


def parse_command_line(
    arguments: Sequence[str],
) -> tuple[Layers, RunOptions, dict[str, Any]]:
    """Split a command line into YAML files, run options and YAML overrides."""
    if any(argument.startswith(LAUNCH) for argument in arguments):
        raise HparamsError(
            "python -m torch.distributed.launch is replaced by torchrun: torchrun "
            "--standalone --nproc_per_node=N train.py FILE.yaml ..."
        )
    if not arguments or arguments[0].startswith("-"):
        raise HparamsError(
            "the first argument must be a YAML file, without --config, for example "
            "`python train.py hparams/mossformer2.yaml --data_folder=...` (--help "
            "says more)"
        )
    options = {field.name for field in dataclasses.fields(RunOptions)}
    options -= {"param_file", "overridden_args", "data_parallel_count"}
    param_file, *tokens = arguments
    for key, value in given_options(tokens).items():
        if other := VALUES.get(f"{key}={value.lower()}"):
            raise HparamsError(f"--{key}={value}: this is {other} here")
    layers = Layers(param_file, given_options(tokens))
    known: list[str] = [param_file]
    overrides: dict[str, Any] = {}
    of_network, _ = parameters(layers.whole.get("separator"))
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
        elif name in layers.whole or name in of_network:
            if not equals and len(following) != 1:
                raise HparamsError(f"--{name} needs one value: --{name}=VALUE")
            given = _parse_value(name, value if equals else following[0])
            if name not in layers.whole:
                name, given = "separator", {name: given}
            before = overrides.get(name)
            both = isinstance(given, dict) and isinstance(before, dict)
            overrides[name] = {**(before or {}), **given} if both else given
        else:
            raise HparamsError(_unknown_option(token, layers.whole, options))
    run_opts = _typed_run_options(known)
    if run_opts.device is not None:
        check_device(run_opts.device)
    return layers, run_opts, overrides


def given_options(tokens: Sequence[str]) -> dict[str, str]:
    """Return `--key=value` and `--key value` as typed; they may be invalid."""
    given = {}
    for token, following in zip(tokens, [*tokens[1:], ""], strict=False):
        name, equals, value = token.removeprefix("--").partition("=")
        if token.startswith("--"):
            given[name] = value if equals else following
    return given


def _unknown_option(token: str, tree: Mapping[str, Any], options: set[str]) -> str:
    """Return the message for an option that neither the file nor SpeechBrain has."""
    name = token[2:].partition("=")[0]
    if name in NOTES:
        return f"{token}: {NOTES[name]}"
    names = {*tree, *options}
    for key in OBJECTS & tree.keys():
        own = tree[key] if isinstance(tree[key], dict) else {}
        names |= {f"{key}.{argument}" for argument in {*own, *parameters(tree[key])[0]}}
    if not (found := meant(name, names)):
        return f"unknown key --{name}: --help lists the keys"
    found, _, example = found.partition("=")
    key, _, argument = found.partition(".")
    example = f"'{{{argument}: {example or '...'}}}'" if argument else example
    found = f"--{key}={example}" if example else key
    return f"unknown key --{name}: did you mean {found}?"


def _parse_value(name: str, text: str) -> Any:
    """Return a command-line value, read by the rules of YAML."""
    try:
        value = ruamel.yaml.YAML().load(text)
    except ruamel.yaml.YAMLError as error:
        why = "is not valid YAML"
        if any("\udc80" <= character <= "\udcff" for character in text):
            why = "is not UTF-8, as YAML must be; give a link of another name (ln -s)"
        raise HparamsError(f"--{name}: {text!r} {why}") from error
    # A path may hold ` #`, and there is nobody to write a comment to.
    is_cut = isinstance(value, str) and " #" in text and text[:1] not in "'\""
    value = text if is_cut else value
    # A shell expands only the `~` that begins a word.
    is_home = isinstance(value, str) and value.startswith("~/")
    return os.path.expanduser(value) if is_home else value


def _typed_run_options(arguments: list[str]) -> RunOptions:
    """Run SpeechBrain's parser; its usage errors become exceptions."""
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            _, run_opts, _ = sb.parse_arguments(arguments)
    except (SystemExit, argparse.ArgumentError) as error:
        message = captured.getvalue().strip().splitlines()
        raise HparamsError(message[-1] if message else str(error)) from error
    limit = run_opts.optimizer_step_limit  # SpeechBrain gives it no type
    if limit is not None:
        limit = _parse_value("optimizer_step_limit", str(limit))
        limit = Kind(frozenset({int})).fitted("--optimizer_step_limit", limit)
    run_opts = dataclasses.replace(run_opts, optimizer_step_limit=limit)
    for name, value in vars(run_opts).items():
        if name in LIMITS:
            LIMITS[name].check(f"--{name}", value)
    return run_opts


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
