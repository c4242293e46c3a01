"""Who may import whom: one direction, no circles, networks that need only torch."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tests import ROOT

ENTRIES = ("train", "separate", "export")
#: The wings of `modules`, and the wings that each may use besides itself and runtime.
WINGS: dict[str, set[str]] = {
    "runtime": set(),
    "models": set(),
    "audio": set(),
    "losses": set(),
    "metrics": {"losses"},
    "lora": set(),
    "monitor": {"audio"},
    "data": {"audio"},
    "inference": {"losses"},
    "weights": {"lora", "models"},
}


def product_files() -> list[Path]:
    """Every Python file of the product, relative to the repository."""
    folders = ("recipes", "modules", "data_prep")
    entries = [ROOT / f"{name}.py" for name in ENTRIES]
    files = [path for name in folders for path in (ROOT / name).rglob("*.py")]
    return sorted(
        path.relative_to(ROOT) for path in [*entries, *files] if path.is_file()
    )


def module_of(path: Path) -> str:
    """`a/b.py` as `a.b`, `a/__init__.py` as `a`."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in product_files()}


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)


EDGES = {
    module: sorted({name for name in imports_of(path) if name in MODULES})
    for module, path in MODULES.items()
}


def test_imports_go_one_way():
    below = {"recipes": {"recipes", "modules"}, "modules": {"modules"}}
    below["data_prep"] = {"data_prep", "modules"}
    for module, names in EDGES.items():
        top = module.split(".")[0]
        allowed = below.get(top, {"recipes", "modules"})
        for name in names:
            assert name.split(".")[0] in allowed, f"{module} imports {name}"


def test_wings_of_modules_use_only_those_below():
    for module, names in EDGES.items():
        if not module.startswith("modules."):
            continue
        wing = module.split(".")[1]
        allowed = {wing, "runtime", *WINGS[wing]}
        for name in names:
            assert name.split(".")[1] in allowed, f"{module} imports {name}"


def test_a_network_imports_torch_alone():
    allowed = {"torch", *sys.stdlib_module_names}
    for path in (ROOT / "modules" / "models").glob("*.py"):
        for name in imports_of(path.relative_to(ROOT)):
            assert name.split(".")[0] in allowed, f"{path.name} imports {name}"


def test_a_data_set_uses_common_and_what_it_is_made_from():
    made_from = {"whamr": {"wham"}, "synthetic": {"wsj0mix", "music"}}
    for module, names in EDGES.items():
        if not module.startswith("data_prep.") or "verify" in module:
            continue
        own = module.split(".")[1]
        allowed = {own, "common", *made_from.get(own, ())}
        for name in names:
            parts = name.split(".")
            if parts[0] == "data_prep":
                assert parts[1] in allowed, f"{module} imports {name}"


def test_there_are_no_circles():
    state: dict[str, str] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert state.get(module) != "open", " -> ".join((*path, module))
        if module in state:
            return
        state[module] = "open"
        for name in EDGES[module]:
            visit(name, (*path, module))
        state[module] = "done"

    for module in MODULES:
        visit(module, ())
