"""The text of `--help`: for every recipe, with what can be typed."""

import pytest

import train
from modules.runtime.errors import HparamsError
from recipes.config.load import parse_command_line
from recipes.config.usage import usage
from tests import ROOT

RECIPES = sorted(path.name for path in (ROOT / "hparams").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_option_that_is_listed_can_be_typed(name):
    path = str(ROOT / "hparams" / name)
    text = usage([path, "--help"])
    keys = text.split("keys of")[1].split("SpeechBrain's options")[0].splitlines()
    options = [line.split()[0] for line in keys if line.startswith("  --")]
    is_run = "htdemucs_clean" not in name  # but several runs after each other
    has_batches = any(o.startswith("--batch_size=") for o in options)
    assert (len(options) > 20 and has_batches) == is_run
    names = [option.split("=")[0] for option in options]
    choices = ("--precision", "--dataset")
    parse_command_line([path, *(f"{n}=1" for n in names if n not in choices)])
    assert max(map(len, keys)) < 120


def test_defaults_are_those_of_the_file_itself():
    text = usage(["--help", str(ROOT / "hparams" / "mossformer2_tiny.yaml")])
    assert "--channels=64" in text and "--channels=512" not in text
    assert "--segment_seconds=2 " in text and "null: whole utterances" in text
    assert "--data_folder=... (required)" in text
    assert "[recipe]" not in text, "a mark of the value that is overridden"


def test_every_argument_of_an_object_is_listed():
    text = usage(["--help", str(ROOT / "hparams" / "htdemucs.yaml")])
    assert "t_heads: 8" in text and "betas: [0.9, 0.999]" in text
    assert "--augmentation='{shift_seconds: 1.0, " in text


def test_the_block_of_a_data_set_is_shown():
    path = str(ROOT / "hparams" / "mossformer2.yaml")
    assert "--mixture=" not in usage([path, "--help"])
    text = usage([path, "--dataset=whamr", "--help"])
    assert "--mixture=reverb " in text and "--dataset=whamr " in text
    with pytest.raises(HparamsError, match="'wham2', expected one of librimix"):
        usage([path, "--dataset", "wham2", "--help"])


def test_without_a_file_the_recipes_are_listed():
    text = usage(["--help"], ROOT / "hparams")
    for name in RECIPES:
        is_base = name in ("base.yaml", "speech.yaml", "music.yaml")
        assert (f"hparams/{name} " in text) != is_base
    assert "--grad_accumulation_factor" in text


def test_help_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train.main(["--help"])
    assert capsys.readouterr().out.startswith("usage: python train.py FILE.yaml")
    train.main([str(ROOT / "tests" / "toy.yaml"), "--help"])
    assert "--dropout=0.0" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    with pytest.raises(HparamsError, match="none.yaml: no such YAML file"):
        train.main(["none.yaml", "-h"])


def test_the_list_of_recipes_takes_any_file(tmp_path):
    (tmp_path / "mine.yaml").write_bytes("# kühl\nlr: 1".encode("latin-1"))
    (tmp_path / "none.yaml").write_text("lr: 1")
    text = usage(["--help"], tmp_path)
    assert "/mine.yaml " in text and "/none.yaml" in text
