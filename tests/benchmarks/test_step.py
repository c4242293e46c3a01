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
    slower = parts | {"rest": 14.0}
    results = {"sepformer_tiny": [parts], "sepformer": [parts, slower, slower]}
    first, second = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in step.table(results)[2:]
    )
    assert first[1] == "100" and first[-1] == "10.0"
    assert second[0] == "sepformer (few layers)"
    assert second[1] == "110" and second[-1] == "18.2 (10.0 to 18.2)"
    step.draw(results, tmp_path / "step.png")
    assert (tmp_path / "step.png").stat().st_size > 1000


def test_every_recipe_has_a_size_for_the_cpu(tmp_path, monkeypatch):
    names = {path.stem for path in step.HPARAMS.glob("*.yaml")}
    assert {*step.NO_STEP, *step.SHALLOW} <= names and len(step.RECIPES) > 20
    monkeypatch.setattr(step.songs, "generate", lambda *_: None)
    monkeypatch.setattr(step, "run", lambda command, **_: None)
    for recipe in step.RECIPES:
        arguments = step.arguments_of(recipe, tmp_path)
        few = [one for one in arguments if one.startswith(("--layers", "--segment"))]
        assert bool(few) == (not recipe.endswith("_tiny")) or recipe == "sepformer"
        pretrained = [one for one in arguments if one.startswith("--pretrained=")]
        assert bool(pretrained) == ("_lora" in recipe)


def test_a_start_is_measured_on_sets_that_are_made(tmp_path):
    start.make_mixtures(tmp_path / "mixtures", 8)
    start.make_utterances(tmp_path / "utterances", 130)
    start.start("mixtures", tmp_path)
    assert (tmp_path / "run" / "save" / "train.csv").is_file()
    found = start.measure("utterances", tmp_path, "first start")
    index = (tmp_path / "run" / "utterances.csv").read_text()
    assert index.count("\n") == 1 + 250
    assert found["peak MB"] > 0
    assert not (tmp_path / "run" / "save").exists()
