"""What a run was trained with, kept in its checkpoints, and what a resume changes.

A resume that silently trains on with another batch size, or silently ignores a new
learning rate, is worse than one that stops. Every setting that may change what is
trained is therefore compared. Free are those that `recipes/config/schema.py` declares
so: places, speed, logs, evaluation, and for how long to train.
"""

import logging
from collections.abc import Mapping

import ruamel.yaml
from speechbrain.utils.checkpoints import Checkpoint

from modules.runtime.errors import HparamsError
from modules.weights.stated import matters
from recipes.config.nodes import parameters, settings_class, tag_of

logger = logging.getLogger(__name__)

Settings = dict[str, object]


def settings_of(resolved: str) -> Settings:
    """Return the settings of a resolved YAML that decide what is trained.

    They are plain values by dotted key, the class of an object under its own key.

    >>> settings_of("N_epochs: 3\\noptimizer: !name:torch.optim.Adam\\n    lr: 0.1")
    {'optimizer': '!name:torch.optim.Adam', 'optimizer.lr': 0.1}
    """
    tree = ruamel.yaml.YAML().load(resolved)
    free = settings_class(tree).free()
    settings: Settings = {}
    for key, node in tree.items():
        if key not in free and not key.startswith("__"):  # an action, as of the seed
            _flatten(settings, key, node)
    return settings


def _flatten(settings: Settings, key: str, node: object) -> None:
    """Add a node of the YAML tree under its dotted key."""
    tag = tag_of(node)
    if isinstance(node, Mapping):
        if tag or not node:
            settings[key] = tag or "{}"
        for name, value in node.items():
            _flatten(settings, f"{key}.{name}", value)
    elif isinstance(node, list):
        settings[key] = (f"{tag} " if tag else "") + f"[{', '.join(map(_text, node))}]"
    elif tag:
        settings[key] = f"{tag} {getattr(node, 'value', node)}".strip()
    elif isinstance(node, bool) or node is None:
        settings[key] = node
    elif isinstance(node, int | float):  # ruamel's are of classes of its own
        settings[key] = int(node) if isinstance(node, int) else float(node)
    else:
        settings[key] = str(node)


def _text(node: object) -> str:
    """Return an item of a list in one line."""
    settings: Settings = {}
    _flatten(settings, "", node)
    if list(settings) == [""]:
        return str(settings[""])
    return ", ".join(f"{key.lstrip('.')}: {value}" for key, value in settings.items())


def changed_settings(
    before: Settings, now: Settings
) -> dict[str, tuple[object, object]]:
    """Return the former and the present value of all settings that differ.

    A setting that only one side has counts as its default on the other, or "not set".

    >>> changed_settings({"lr": 0.1, "seed": 1}, {"lr": 0.2, "seed": 1})
    {'lr': (0.1, 0.2)}
    """
    pairs = {key: (_value(before, key), _value(now, key)) for key in before | now}
    differ = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    # The network gets the key of this name, which is free.
    differ.pop("separator.activation_checkpointing", None)
    return differ


def _value(settings: Settings, key: str) -> object:
    """Return a setting, or the default of the object's argument that is not given."""
    if key in settings:
        return settings[key]
    owner, _, argument = key.rpartition(".")
    tag = str(settings.get(owner, "")).partition(" ")[0]
    node = ruamel.yaml.YAML().load(f"{tag} {{}}") if tag.startswith("!") else None
    known = parameters(node)[0].get(argument)
    if known is None or known.default is known.empty:
        return "not set"
    default: Settings = {}
    is_list = isinstance(known.default, list | tuple)
    _flatten(default, key, list(known.default) if is_list else known.default)
    return default.get(key, "not set")


def describe(changed: Mapping[str, tuple[object, object]]) -> str:
    """Return one line that says each change once, under the key that a user would set.

    >>> describe({"optimizer.lr": (0.1, 0.2), "lr": (0.1, 0.2)})
    'lr: 0.1 -> 0.2'
    """
    texts: list[str] = []
    told: set[tuple[str, str]] = set()
    for key in sorted(changed, key=lambda key: (key.count("."), key)):
        old, new = map(str, changed[key])
        # The changes further down that a top-level key brings about are not repeated.
        if "." not in key or (old, new) not in told:
            texts.append(f"{key}: {old} -> {new}")
        told.add((old, new))
    return "; ".join(texts)


def check_settings(
    found: Checkpoint | None, now: Settings, allowed: bool, to_test: bool = False
) -> dict[str, tuple[object, object]]:
    """Return what differs from the settings of a checkpoint; raise unless `allowed`.

    `to_test` compares only what the network makes of its weights.
    """
    if found is None:
        return {}
    if "settings" not in found.meta:  # saved before these were kept
        logger.warning(f"{found.path} holds no settings: they are not compared")
        return {}
    changed = changed_settings(found.meta["settings"], now)
    if to_test:
        changed = {key: pair for key, pair in changed.items() if _is_network(key)}
    if changed and not allowed:
        raise HparamsError(
            f"{found.path} was saved with other settings: {describe(changed)}. Give "
            "the former ones, or another --output_folder, or accept the change by "
            "--allow_changes=True"
        )
    if changed:
        logger.warning(f"Going on with other settings: {describe(changed)}")
    return changed


def _is_network(key: str) -> bool:
    own = key in ("sample_rate", "sources") or key.split(".")[0] == "separator"
    return own and matters(key)
