"""The count of what a run imports."""

import textwrap
from pathlib import Path

from benchmarks import imports
from tests import ROOT


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def test_the_closure_follows_imports_wherever_they_stand(tmp_path):
    start = write(
        tmp_path / "start.py",
        """
        import json
        from wing import part

        def late():
            from wing.deep.leaf import value
        """,
    )
    packages = [write(tmp_path / p / "__init__.py") for p in ("wing", "wing/deep")]
    part = write(tmp_path / "wing" / "part.py", "import start\n")
    leaf = write(tmp_path / "wing" / "deep" / "leaf.py", "value = 1\n")
    write(tmp_path / "wing" / "unused.py", "import wing.deep\n")
    found = imports.import_closure(["start"], tmp_path)
    assert found == sorted([start, part, leaf, *packages])
    # A name in a YAML ends with the object.
    named = imports.import_closure(["wing.deep.leaf.value"], tmp_path)
    assert named == sorted([leaf, *packages])


def test_lines_of_code_are_those_that_do_something(tmp_path):
    file = write(
        tmp_path / "file.py",
        '''
        """A docstring
        of two lines."""

        # A comment.
        text = """not a
        docstring"""  # and a comment


        def function():
            """One line."""
            return (
                1
            )
        ''',
    )
    assert imports.code_lines(file) == 2 + 4
    assert imports.code_lines(write(tmp_path / "empty.py")) == 0


def test_a_docstring_longer_than_the_body_is_found(tmp_path):
    file = write(
        tmp_path / "file.py",
        '''
        def long():
            """First

            last."""
            return 1

        def short():
            """One."""

        class Holder:
            def also_long(self):
                """First

                last."""
        ''',
    )
    assert [name for _, name in imports.long_docstrings(file)] == ["long", "also_long"]


def test_the_table_has_a_row_for_speech_and_one_for_music(capsys):
    imports.main(["--files"])
    _, _, speech, music, *listed = capsys.readouterr().out.splitlines()
    for row, recipe, own in (
        (speech, "mossformer2", "recipes/speech.py"),
        (music, "htdemucs", "recipes/music.py"),
    ):
        name, *numbers = row.strip("| ").split(" | ")
        files, files_apart, files_rest, lines, lines_apart, lines_rest = map(
            int, numbers
        )
        assert name == recipe
        assert files_apart >= 1 and files - files_apart == files_rest
        assert lines_apart > 400 and lines - lines_apart == lines_rest
        counted = imports.lines_of_run(ROOT / "hparams" / f"{recipe}.yaml")
        assert {own, "train.py"} <= counted.keys()
        assert len(counted) == files and sum(counted.values()) == lines
        assert f"{counted[own]:6}  {own}" in listed


def test_the_product_is_counted_as_wc_does(capsys):
    imports.main(["--product"])
    first = capsys.readouterr().out.splitlines()[0].split()
    files = imports.product_files()
    assert int(first[0]) == sum(f.read_bytes().count(b"\n") for f in files)
    assert int(first[3]) == len(files) and ROOT / "train.py" in files
