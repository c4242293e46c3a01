"""The typed settings: what they accept, and that each is declared where it is read."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from benchmarks.truncation_rules import RuleSettings
from modules.runtime.errors import HparamsError
from recipes.config.kinds import Kind, Limits
from recipes.config.load import load_hparams
from recipes.config.schema import (
    MusicLoraSettings,
    MusicSettings,
    SpeechLoraSettings,
    SpeechSettings,
    setting,
)
from tests import ROOT
from tests.recipes.config.test_load import is_read

TOY = str(ROOT / "tests" / "toy.yaml")
RECIPES = {
    "demo_music": RuleSettings,
    "htdemucs_lora_tiny": MusicLoraSettings,
    "htdemucs_noisy": MusicSettings,
    "mossformer2_lora": SpeechLoraSettings,
    "sepformer_tiny": SpeechSettings,
}


@pytest.fixture(scope="module")
def hparams() -> dict[str, Any]:
    return load_hparams(TOY, {"data_folder": "/none"})[0]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_what_its_class_declares(name):
    path = ROOT / "hparams" / f"{name}.yaml"
    loaded, _ = load_hparams(path, {"data_folder": "/none"})
    assert loaded["recipe"].settings_class is RECIPES[name]
    read = RECIPES[name].read(loaded)
    for field in dataclasses.fields(read):
        value = getattr(read, field.name)
        assert value is loaded.get(field.name) or value == loaded[field.name]


@pytest.mark.parametrize("cls", RECIPES.values(), ids=lambda cls: cls.__name__)
def test_what_is_declared_is_read(cls):
    for field in dataclasses.fields(cls):
        assert is_read(field.name), f"nothing reads {field.name}"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_size", 0, "batch_size=0: must be above 0"),
        ("lr", float("nan"), "lr=.nan: must be finite"),
        ("noise_snr_db", [1, float("inf")], "must be finite"),
        ("speed_changes", ["fast"], "expected a list (each item an integer) or null"),
        ("tensorboard", 1, "tensorboard=1: expected True or False"),
        ("seed", -1, "seed=-1: must be 0 or more"),
    ],
)
def test_a_value_of_the_yaml_is_checked_as_one_of_the_command_line(
    hparams, name, value, message
):
    with pytest.raises(HparamsError) as error:
        SpeechSettings.read({**hparams, name: value})
    assert message in str(error.value)


def test_a_missing_key_is_named_unless_it_has_a_default(hparams):
    assert SpeechSettings.read(hparams).load_pretrained is None
    less = {name: value for name, value in hparams.items() if name != "num_spks"}
    with pytest.raises(HparamsError, match="no key num_spks"):
        SpeechSettings.read(less)


def test_a_recipe_from_outside_declares_its_own(hparams):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(SpeechSettings):
        share: float = setting(at_least=0, below=1, free=True, default=0.5)

    assert Mine.read(hparams).share == 0.5
    assert "share" in Mine.free() and "share" not in SpeechSettings.free()
    with pytest.raises(HparamsError, match="share=1: must be from 0 to below 1"):
        Mine.read({**hparams, "share": 1})


def test_annotations_are_read_in_terms_of_yaml():
    def text(hint: Any) -> str:
        return str(Kind.of_annotation(hint))

    assert text(int | None) == "an integer or null"
    assert text(str | Path) == "text"
    assert text(list[int | float]) == "a list (each item a number)"
    assert text(list[Any] | None) == "a list or null"
    assert Kind.of_annotation(Kind) is None and Kind.of_annotation(Any) is None
    limited = Kind.of_annotation(float | None, Limits(above=0))
    assert str(limited) == "a number above 0 or null"
