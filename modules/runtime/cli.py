"""Make a command line from the signature of a function.

    sys.exit(run("python -m data_prep.wham", __doc__, {"prepare": prepare}))

A parameter becomes `--name`; it is required unless it has a default. A parameter before
`/` and `*names` are positional. Type, default and choices (`Literal`) come from the
signature, the help comes from the section "Arguments" of the docstring.
"""

import argparse
import dataclasses
import inspect
import logging
import os
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from modules.runtime.errors import UserError
from modules.runtime.files import one_line
from modules.runtime.signals import EXIT_REQUEUE, StopRun
from modules.runtime.terminal import keep_printing

logger = logging.getLogger(__name__)

INTERRUPTED = 130


def as_command(action: Callable[[], object]) -> int:
    """Call a function; print its errors as one line where the message says all.

    Returns the exit status: 0, 1 after a `UserError` or an `OSError`, 130 after Ctrl-C,
    75 after a `StopRun`. What all ranks raise, the main one prints.
    """
    keep_printing()
    try:
        action()
    except (UserError, OSError, StopRun) as error:
        is_stop = isinstance(error, StopRun)
        line = str(error) if is_stop else f"error: {one_line(error)}"
        if os.environ.get("RANK", "0") == "0" or not getattr(error, "is_shared", False):
            print(line, file=sys.stderr)
            logger.debug(line)  # into the log of a run, should the terminal be gone
        return EXIT_REQUEUE if is_stop else 1
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return INTERRUPTED
    return 0


def show(result: object) -> None:
    """Print what a command made: a path, or a line for each of several."""
    if isinstance(result, Mapping):
        for name, path in result.items():
            print(f"{name}: {path}")
    elif isinstance(result, Path):
        print(result)


def run(
    prog: str,
    doc: str | None,
    commands: Callable | Mapping[str, Callable],
    arguments: Sequence[str] | None = None,
    report: Callable[[Any], int | None] = show,
) -> int:
    """Run a function, or one of several, from the command line; return the exit status.

    `prog` is the name in the help. The help of the first command is `doc`, that of the
    others the docstring of their module. Functions of a mapping are chosen by the first
    word of `arguments`; without such a word the first runs. `report` prints the result
    of the function, and may return an exit status.

    >>> def double(number: int, /, times: int = 2) -> Path:
    ...     return Path(str(number * times))
    >>> run("double", "Multiply.", double, ["4", "--times=3"])
    12
    0
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(commands, Mapping):
        function = first = next(iter(commands.values()))
        if arguments and arguments[0] in commands:
            prog = f"{prog} {arguments[0]}"
            function = commands[arguments.pop(0)]
        if function is not first:
            doc = inspect.getmodule(function).__doc__
    else:
        function = commands
    parser = argparse.ArgumentParser(
        prog=prog,
        description=(doc or "").split("\nLegend:")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a shortened name means another when options are added
    )
    _add_options(parser, function)
    values = vars(parser.parse_args(arguments))
    for key, value in values.items():
        if isinstance(value, list):  # of lists: what commas separate
            values[key] = [item for part in value for item in part]
    status = 0

    def call() -> None:
        nonlocal status
        status = report(_call(function, values)) or 0

    return as_command(call) or status


def _add_options(parser: argparse._ActionsContainer, callee: Callable) -> None:
    """Give each parameter of a function, or each field of a dataclass, an option."""
    helps, kinds = describe_arguments(callee), get_type_hints(callee)
    for name, one in inspect.signature(callee).parameters.items():
        if dataclasses.is_dataclass(kinds[name]):
            _add_options(parser.add_argument_group(name), kinds[name])
            continue
        positional = one.kind in (one.POSITIONAL_ONLY, one.VAR_POSITIONAL)
        required = one.default is one.empty
        kind, choices, several = plain_type(kinds[name])
        options: dict[str, Any] = {}
        if not positional:
            options = {"required": True} if required else {"default": one.default}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif several or one.kind is one.VAR_POSITIONAL:
            options |= {"type": _list_of(kind), "nargs": "+"}
        else:
            options |= {"type": kind, "choices": choices or None}
        text = helps.get(name, "")
        if not (required or one.default in (None, "") or one.default is False):
            shown = " ".join(map(str, one.default)) if several else one.default
            text = f"{text} (default: {shown})".strip()
        option = name if positional else f"--{name}"
        parser.add_argument(option, help=text.replace("%", "%%"), **options)


def _call(callee: Callable, values: Mapping[str, Any]) -> object:
    """Call a function with those of the values that are its parameters."""
    args: list[object] = []
    kwargs: dict[str, object] = {}
    kinds = get_type_hints(callee)
    for name, one in inspect.signature(callee).parameters.items():
        if dataclasses.is_dataclass(kinds[name]):
            kwargs[name] = _call(kinds[name], values)
        elif one.kind is one.VAR_POSITIONAL:
            args += values[name]
        elif one.kind is one.POSITIONAL_ONLY:
            args.append(values[name])
        else:
            kwargs[name] = values[name]
    return callee(*args, **kwargs)


def plain_type(hint: Any) -> tuple[type, tuple, bool]:
    """Return the type of a value in a string, its choices, and whether several may be.

    >>> plain_type(Sequence[int]), plain_type(str | Path | None)
    ((<class 'int'>, (), True), (<class 'str'>, (), False))
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        members = [member for member in inner if member is not type(None)]
        return plain_type(str if str in members else members[-1])
    if origin is Literal:
        return type(inner[0]), inner, False
    if origin in (Sequence, list, tuple):
        kind, choices, _ = plain_type(inner[0])
        return kind, choices, True
    return hint, (), False


def _list_of(kind: type) -> Callable[[str], list]:
    """Return a reader of values that commas separate; a file's name may hold some."""

    def read(text: str) -> list:
        return [kind(part) for part in ([text] if kind is Path else text.split(","))]

    read.__name__ = kind.__name__  # for argparse's messages
    return read


def describe_arguments(documented: Callable) -> dict[str, str]:
    """Return what the section "Arguments" of a docstring says of each name."""
    section = re.search(
        r"^Arguments\n-+\n(.*?)(?=^\w[^\n]*\n-+$|\Z)",
        inspect.getdoc(documented) or "",
        re.MULTILINE | re.DOTALL,
    )
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.group(1).splitlines() if section else ():
        if line and not line.startswith(" "):
            names = [name.strip(" *") for name in line.split(" : ")[0].split(",")]
        else:
            for name in names:
                found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found
