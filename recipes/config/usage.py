"""What `python train.py --help` prints: what to type, every key and its default."""

import itertools
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechbrain.utils.run_opts import HELP_TEXTS

from recipes.config.kinds import written
from recipes.config.load import OBJECTS, Layers, given_options
from recipes.config.nodes import parameters, setting_kind, tag_of
from recipes.config.schema import LIMITS

USAGE = """\
usage: python train.py FILE.yaml [--key=value ...]
       torchrun --standalone --nproc_per_node=N train.py FILE.yaml [--key=value ...]

Trains, then tests the best checkpoint. The same command again resumes; --test_only
scores the best checkpoint again. Every key of the YAML file is an option; of a nested
one name what changes, as --lr_scheduler='{patience: 3}'.
"""

# SpeechBrain's options that people use most; the others are only named.
USUAL = (
    *("device", "test_only", "debug", "precision", "eval_precision", "compile"),
    *("grad_accumulation_factor", "max_grad_norm", "optimizer_step_limit"),
    *("ckpt_interval_minutes", "ckpt_interval_steps", "noprogressbar"),
)

WIDTH, COLUMN = 100, 34


def usage(arguments: Sequence[str], folder: Path = Path("hparams")) -> str:
    """Return the text for a command line that asks for help.

    If it names a YAML file, the text lists the keys of this file with the block of the
    data set that is named, or else the recipes in `folder`.
    """
    files = [argument for argument in arguments if not argument.startswith("-")]
    if files:
        layers = Layers(files[0], given_options(arguments))
        parts = [f"keys of {files[0]}, and their defaults:", *_keys(layers)]
    else:
        parts = ["recipes (FILE.yaml --help lists the keys of one):"]
        parts += [
            _line(f"{folder.name}/{path.name}", _summary(path))
            for path in sorted(folder.glob("*.yaml"))
            if b"Not run by itself" not in path.read_bytes()
        ]
    parts += ["", "SpeechBrain's options:"]
    for name in USUAL:
        text = re.split(r"\. ?(?=[A-Z]|$)", HELP_TEXTS[name])[0]
        limits = f" [{LIMITS[name]}]" if name in LIMITS else ""
        parts.append(_line(f"--{name}", text + limits))
    others = sorted(HELP_TEXTS.keys() - set(USUAL))
    text = "and " + ", ".join(f"--{name}" for name in others)
    parts += textwrap.wrap(text, 86, initial_indent="  ", subsequent_indent="  ")
    return "\n".join([USAGE, *parts])


def _keys(layers: Layers) -> list[str]:
    """A line for each key, then one for each object with settings of its own."""
    said: dict[str, str] = {}
    for tree in layers.trees:
        for key, tokens in tree.ca.items.items():
            beside = tokens[2].value if tokens[2] else ""
            if beside.startswith("#"):
                text = beside.split("\n")[0].lstrip("# ")
                said[key] = re.sub(r"\[\w+\] ?", "", text)  # of the default alone
    plain, objects = [], []
    tree = layers.overridden({})
    for key, node in tree.items():
        defaults = parameters(node)[0] if key in OBJECTS else {}
        if not isinstance(node, Mapping) and not defaults:
            kind = setting_kind(tree, key)
            # The default shows a type; alternatives and ranges must be said.
            says_more = kind and (len(kind.types) > 1 or str(kind.limits))
            remarks = [said.get(key, ""), f"[{kind}]" if says_more else ""]
            plain.append(_line(f"--{key}={_default(node)}", " ".join(remarks).strip()))
            continue
        own = {n: _default(p.default) for n, p in defaults.items()}
        given = node.items() if isinstance(node, Mapping) else ()
        own |= {name: _default(value) for name, value in given}
        # An argument that is a reference, as {lr: <lr>}, is changed by that key.
        text = ", ".join(f"{k}: {v}" for k, v in own.items() if v[:1] != "<")
        if text and not key.startswith("_") and "{" not in text:
            option = f"--{key}='{{{text}}}'"
            objects += textwrap.wrap(
                option, WIDTH, initial_indent="  ", subsequent_indent="      "
            )
    return [*plain, "", "objects, and their settings:", *objects]


def _default(node: Any) -> str:
    """A node of the YAML tree, on one line."""
    tag = tag_of(node)
    if isinstance(node, Mapping):
        inner = ", ".join(f"{key}: {_default(value)}" for key, value in node.items())
        return f"{tag} {{{inner}}}".strip()
    if isinstance(node, (list, tuple)):
        return f"[{', '.join(_default(item) for item in node)}]"
    if tag == "!PLACEHOLDER":
        return "... (required)"
    return f"{tag} {node.value}".removeprefix("!ref").strip() if tag else written(node)


def _line(option: str, remark: str) -> str:
    """An option and what is said of it, with its second line under the first."""
    lines = textwrap.wrap(
        f"{option.ljust(COLUMN - 1)} {remark}", WIDTH, subsequent_indent=COLUMN * " "
    )
    return textwrap.indent("\n".join(lines), "  ")


def _summary(path: Path) -> str:
    """The beginning of the comment that opens a YAML file."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    opening = itertools.takewhile(lambda line: line.startswith("# "), lines)
    text = " ".join(line.lstrip("# ") for line in opening)
    return textwrap.shorten(text, 60, placeholder=" ...")
