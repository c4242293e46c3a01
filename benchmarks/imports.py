"""Count what a newcomer reads: the files that a run imports, and the whole product.

    python -m benchmarks.imports [--files] [hparams/mossformer2.yaml ...]
    python -m benchmarks.imports --product

For each recipe: the files of this repository that `train.py` and the names in the YAML
import, directly or through others, wherever in a file the import stands. A line of code
is one with more than a docstring, a comment or blanks on it; a file without any is not
counted. Networks (`modules/models`) and generators of data (`data_prep/synthetic`) are
counted apart, since nobody reads them on the way to the loss.

`--files` lists the files of each run, the longest first. `--product` prints the lines
of the product, docstrings included, the files longer than 600 lines, and the functions
whose docstring has several lines and more than their body.
"""

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

from recipes.config.load import load_hparams

ROOT = Path(__file__).parents[1]
RECIPES = ("hparams/mossformer2.yaml", "hparams/htdemucs.yaml")
APART = ("modules/models/", "data_prep/synthetic/")
PRODUCT = ("train.py", "separate.py", "export.py", "recipes", "modules", "data_prep")
LONG = 600
Function = ast.FunctionDef | ast.AsyncFunctionDef
BLANK = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENCODING),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}


def file_of(name: str, root: Path = ROOT) -> Path | None:
    """Return the file that the longest part of a dotted name stands for, or None."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = root.joinpath(*parts[:length])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


def imported_names(file: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def names_in_recipe(recipe: Path) -> list[str]:
    """Return the dotted names of the objects that a recipe's YAML makes or names."""
    _, resolved = load_hparams(recipe, {"data_folder": "none"})
    return re.findall(r"!(?:new|name|apply|module):([\w.]+)", resolved)


def import_closure(names: Sequence[str], root: Path = ROOT) -> list[Path]:
    """Return the files under `root` that importing the names would execute."""
    found: set[Path] = set()
    waiting = list(names)
    while waiting:
        file = file_of(waiting.pop(), root)
        if file is None or file in found:
            continue
        found.add(file)
        waiting += imported_names(file)
        # Importing a.b.c executes a/__init__.py and a/b/__init__.py as well.
        folders = [folder for folder in file.parents if root in folder.parents]
        waiting += [".".join(folder.relative_to(root).parts) for folder in folders]
    return sorted(found)


def code_lines(file: Path) -> int:
    """Count the lines with code on them."""
    text = file.read_text(encoding="utf-8")
    docstrings = {
        line
        for node in ast.walk(ast.parse(text))
        if (docstring := docstring_of(node)) is not None
        for line in range(docstring.lineno, (docstring.end_lineno or 0) + 1)
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in BLANK:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def docstring_of(node: ast.AST) -> ast.stmt | None:
    """Return the statement that is a node's docstring, or None."""
    if not isinstance(node, ast.Module | ast.ClassDef | Function):
        return None
    has_one = ast.get_docstring(node, clean=False) is not None
    return node.body[0] if has_one else None


def lines_of_run(recipe: Path) -> dict[str, int]:
    """Return the lines of code of each file that a run imports, by its place."""
    files = import_closure(["train", *names_in_recipe(recipe)])
    lines = {file.relative_to(ROOT).as_posix(): code_lines(file) for file in files}
    return {place: count for place, count in lines.items() if count}


def table_row(name: str, lines: dict[str, int]) -> str:
    """Return a row of the table: files and lines, of them those apart, the rest."""
    apart = {place: lines[place] for place in lines if place.startswith(APART)}
    cells = [name]
    for number in (len, lambda counts: sum(counts.values())):
        whole, part = number(lines), number(apart)
        cells += [f"{whole}", f"{part}", f"{whole - part}"]
    return f"| {' | '.join(cells)} |"


def product_files() -> list[Path]:
    """Return the product's Python files that git knows."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *PRODUCT],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    names = sorted(name for name in listed.split("\0") if name.endswith(".py"))
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def long_docstrings(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line and name of the functions whose docstring is longer than the body."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, Function):
            continue
        docstring = docstring_of(node)
        if docstring is None or docstring.end_lineno is None or not node.end_lineno:
            continue
        length = docstring.end_lineno - docstring.lineno + 1
        if 1 < length > node.end_lineno - docstring.end_lineno:
            yield node.lineno, node.name


def print_product() -> None:
    """Print lines, long files and long docstrings of the product."""
    files = product_files()
    lines = {file: file.read_text(encoding="utf-8").count("\n") for file in files}
    named = {file: file.relative_to(ROOT).as_posix() for file in files}
    print(f"{sum(lines.values())} lines in {len(files)} files")
    print(f"\nlonger than {LONG} lines:")
    for file, count in lines.items():
        if count > LONG:
            print(f"    {named[file]}: {count}")
    print("\ndocstring longer than the body:")
    found = [(file, *place) for file in files for place in long_docstrings(file)]
    for file, line, name in found:
        print(f"    {named[file]}:{line}: {name}")
    print(f"{len(found)} functions")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of recipes, or what `--product` asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.imports",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipes", nargs="*", type=Path, metavar="YAML")
    parser.add_argument("--files", action="store_true", help="list the files as well")
    parser.add_argument("--product", action="store_true", help="count the product")
    options = parser.parse_args(arguments)
    if options.product:
        print_product()
        return 0
    print("| recipe | files | apart | rest | lines of code | apart | rest |")
    print("|---|---|---|---|---|---|---|")
    recipes = options.recipes or [ROOT / name for name in RECIPES]
    runs = {path.stem: lines_of_run(path) for path in recipes}
    for name, lines in runs.items():
        print(table_row(name, lines))
    for name, lines in runs.items() if options.files else ():
        print(f"\n{name}")
        for place in sorted(lines, key=lines.__getitem__, reverse=True):
            print(f"{lines[place]:6}  {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
