"""Where the time of a step goes, and of a start: what is measured, and the table."""

from benchmarks import start, step


def test_a_function_is_timed_without_those_that_it_calls(monkeypatch):
    clock = step.Clock("cpu")
    seconds = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr(clock, "now", lambda: next(seconds))
    inner = clock.timed("loss", lambda: None)
    clock.timed("forward", inner)()
    assert clock.seconds == {"loss": 2.0, "forward": 5.0}


def test_the_table_adds_up_what_is_neither_network_nor_loss(tmp_path):
    parts = {"forward": 60.0, "backward": 30.0, "optimizer": 6.0, "rest": 4.0}
    line = step.table({"sepformer_tiny": parts})[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == "100" and cells[-1] == "10.0"
    step.draw({"sepformer_tiny": parts}, tmp_path / "step.png")
    assert (tmp_path / "step.png").stat().st_size > 1000


def test_every_recipe_that_is_timed_exists():
    names = {path.stem for path in step.HPARAMS.glob("*.yaml")}
    assert {*step.TINY, *step.SHALLOW} <= names


def test_a_start_is_measured_on_sets_that_are_made(tmp_path):
    start.make_mixtures(tmp_path / "mixtures", 8)
    start.make_utterances(tmp_path / "utterances", 130)
    found = start.measure("mixtures", tmp_path)
    assert found["cpu"] > 0 and (tmp_path / "run" / "save" / "train.csv").is_file()
    assert start.measure("utterances", tmp_path)["mb"] > 0
    assert (tmp_path / "utterances.csv").read_text().count("\n") == 1 + 250
