"""The pages tell the truth: links, names of files, commands, options, examples."""

import ast
import contextlib
import importlib
import io
import re
import runpy
import shlex
import sys
import warnings
from functools import cache
from pathlib import Path

import pytest

from recipes.config.load import Layers, parse_command_line
from recipes.config.nodes import parameters
from recipes.config.usage import usage
from tests import ROOT

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "RESULTS.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
FOLDERS = "hparams|recipes|modules|data_prep|benchmarks|docs|tests"
RECIPES = [
    path
    for path in [*(ROOT / "hparams").glob("*.yaml"), *ROOT.glob("benchmarks/*.yaml")]
    if "Not run by itself" not in path.read_text(encoding="utf-8")
]

# Files that a run, an export, demucs and ESPnet write.
OTHERS = {"hyperparams.yaml", "bag.yaml", "htdemucs_ft.yaml", "config.yaml"}

# Options of torchrun, of Slurm and of demucs.
FOREIGN = {"repo", "nproc_per_node", "standalone", "max-restarts", "shutdown-timeout"}
FOREIGN |= {"requeue", "signal", "help", "nnodes", "node_rank", "master_addr"}


def text_of(page: Path) -> str:
    """A page with each command on one line."""
    text = re.sub(r" *\\\n *", " ", page.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]*\n[^`\n]*`", lambda code: " ".join(code[0].split()), text)


def commands() -> list[tuple[str, str, str]]:
    """Page, program and arguments of every `python` or `torchrun` command."""
    pattern = (
        r"(?:python|torchrun)(?: --[\w-]+(?:=\S+)?)* (-m [\w.]+|[\w/]+\.py)([^`\n]*)"
    )
    return [
        (page.name, program.removeprefix("-m "), rest.split(" #")[0].strip())
        for page in PAGES
        for program, rest in re.findall(pattern, text_of(page))
    ]


def options_in(arguments: str) -> set[str]:
    """Names of the options in a command, those in brackets too."""
    return set(re.findall(r"(?<![\w-])--([a-z][\w-]*)", arguments))


@cache
def keys_of(recipe: str, dataset: str = "") -> frozenset[str]:
    """Options of a recipe, by what `--help` prints, and its network's arguments."""
    chosen = [f"--dataset={dataset}"] if dataset else []
    network = Layers(ROOT / recipe, {}).whole.get("separator")
    own = set(parameters(network)[0])
    return frozenset({*options_in(usage([str(ROOT / recipe), *chosen])), *own})


@cache
def help_of(program: str, command: str = "") -> frozenset[str]:
    """Options of another program of ours, by what `--help` prints."""
    arguments, sys.argv = sys.argv, [program, *command.split(), "--help"]
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # it is imported already
            if program.endswith(".py"):
                runpy.run_path(str(ROOT / program), run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        assert not leaving.code, program
    finally:
        sys.argv = arguments
    return frozenset(options_in(text.getvalue()))


def other_commands() -> dict[tuple[str, str], set[str]]:
    """The options that the pages give to each program and subcommand but train.py."""
    given: dict[tuple[str, str], set[str]] = {}
    for _, program, arguments in commands():
        if program not in ("train.py", "pytest"):
            word = arguments.split(" ")[0]
            command = word if word in ("generate", "pool") else ""
            own = options_in(arguments.partition(" -- ")[0])  # the rest is passed on
            given.setdefault((program, command), set()).update(own)
    return given


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 250


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
            slugs = {
                re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings
            }
            assert anchor in slugs, f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_and_modules_exist(page: Path):
    text = text_of(page)
    for name in re.findall(rf"(?<![\w/.])(?:{FOLDERS})/[\w./-]*\w", text):
        if "NAME" not in name:
            assert (ROOT / name).exists(), f"{page.name}: {name}"
    yamls = {path.name for path in ROOT.rglob("*.yaml") if ".venv" not in path.parts}
    for name in re.findall(r"(?<![\w/.<>])[a-z]\w+\.yaml", text):
        assert name in yamls | OTHERS, f"{page.name}: {name}"
    for name in re.findall(rf"(?<![\w/.])(?:{FOLDERS})\.[a-z][\w.]*\w", text):
        assert resolves(name), f"{page.name}: {name}"


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one; NAME stands for any."""
    parts = name.partition(".NAME")[0].split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_every_recipe_is_in_the_table():
    text = README.read_text(encoding="utf-8")
    table = text.partition("| recipe | what |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"`([\w/]+\.yaml)` *[|,]", table)) == sorted(
        str(path.relative_to(ROOT)).removeprefix("hparams/") for path in RECIPES
    )


def test_commands_of_training_parse():
    checked = 0
    for page, program, arguments in commands():
        recipe, _, options = arguments.partition(" ")
        if program != "train.py" or not (ROOT / recipe).is_file():
            assert program != "train.py" or recipe in (
                "...",
                "FILE.yaml",
                "<dataset>",
            ), page
            continue
        # What brackets offer is checked as well; an ellipsis stands for a value.
        words = shlex.split(re.sub(r"\[(--.*?)\](?= |$)", r"\1", options))
        words = [word.replace("...", "any") for word in words if word != "..."]
        if "--help" in words:
            continue
        dataset = next((w[10:] for w in words if w.startswith("--dataset=")), "")
        missing = options_in(options) - keys_of(recipe, dataset)
        assert not missing, f"{page}: {recipe} {missing}"
        _, _, overrides = parse_command_line([str(ROOT / recipe), *words])
        Layers(ROOT / recipe, overrides).overridden(overrides)
        checked += 1
    assert checked > 20


def test_commands_of_other_programs_parse():
    given = other_commands()
    assert {program for program, _ in given} >= {"export.py", "data_prep.talkers"}
    for (program, command), options in given.items():
        unknown = options - help_of(program, command)
        assert not unknown, f"{program} {command}: {unknown}"


def test_named_options_exist():
    known = FOREIGN.union(*(help_of(*one) for one in other_commands()))
    for path in RECIPES:
        known |= keys_of(str(path.relative_to(ROOT)))
    for path in (ROOT / "hparams" / "datasets").glob("*.yaml"):
        known |= keys_of("hparams/mossformer2.yaml", path.stem)
    for page in PAGES:
        named = options_in(" ".join(re.findall(r"`[^`]+`", text_of(page))))
        assert named <= known, f"{page.name}: {named - known}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_the_pages(page: Path):
    blocks = re.findall(r"(?:^    .*\n|^\n)+", page.read_text("utf-8"), re.MULTILINE)
    for block in blocks:
        lines = [line[4:] for line in block.splitlines()]
        code = "\n".join(lines).strip("\n")
        if not re.search(r"^(import|from) \w", code, re.MULTILINE):
            continue
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    assert resolves(f"{node.module}.{alias.name}"), page.name


def test_the_examples_are_the_tested_files():
    page = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
    shown = re.findall(
        r"`(tests/additions/[\w.]+)`:\n\n```\w+\n(.*?)```", page, re.DOTALL
    )
    files = {path.name for path in (ROOT / "tests" / "additions").glob("[a-z]*.*")}
    assert {Path(name).name for name, _ in shown} == files
    for name, code in shown:
        assert (ROOT / name).read_text(encoding="utf-8") == code, name


def test_the_picture_is_small():
    assert (ROOT / "docs" / "demo.png").stat().st_size < 150_000
