"""The typed settings: what they accept, and that each is declared where it is read."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

import train
from benchmarks.truncation_rules import RuleSettings
from modules.runtime.errors import HparamsError
from recipes.config.kinds import Kind, Limits
from recipes.config.load import Layers, load_hparams
from recipes.config.nodes import plain, settings_class
from recipes.config.schema import (
    LIMITS,
    MusicLoraSettings,
    MusicSettings,
    SpeechLoraSettings,
    SpeechSettings,
    setting,
)
from recipes.config.usage import usage
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
        ("speed_changes", ["fast"], "(each item an integer from 1 to 1000) or null"),
        ("tensorboard", 1, "tensorboard=1: expected True or False"),
        ("seed", -1, "seed=-1: must be from 0 to 4294967295"),
    ],
)
def test_a_value_of_the_yaml_is_checked_as_one_of_the_command_line(
    hparams, name, value, message
):
    with pytest.raises(HparamsError) as error:
        SpeechSettings.read({**hparams, name: value})
    assert message in str(error.value)


def test_a_missing_key_is_named(hparams):
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


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (Limits(), ""),
        (Limits(above=0), "above 0"),
        (Limits(above=0, at_most=10), "above 0 and at most 10"),
        (Limits(at_least=-1), "-1 or more"),
        (Limits(at_least=0, below=1), "from 0 to below 1"),
        (Limits(at_least=0, at_most=2**32 - 1), "from 0 to 4294967295"),
        (Limits(below=100), "below 100"),
        (Limits(other_than=0), "other than 0"),
    ],
)
def test_a_range_is_said_in_words(limits, text):
    assert str(limits) == text


@pytest.mark.parametrize("yaml", ["hparams/demo.yaml", "hparams/htdemucs_lora.yaml"])
def test_every_number_has_a_range(yaml):
    """Each key of a number is declared with one, or is a level that may be any."""
    tree = Layers(ROOT / yaml, {}).whole
    declared = settings_class(tree).kinds()
    for key, node in tree.items():
        if isinstance(plain(node, tree), int | float) and not isinstance(node, bool):
            limits = declared[key].limits if key in declared else LIMITS.get(key)
            assert limits, f"{key} is declared nowhere"
            assert str(limits), f"{key} has no range"


REFUSED = [
    ("toy", "--grad_accumulation_factor=0", "must be 1 or more"),
    ("toy", "--grad_accumulation_factor=-1", "must be 1 or more"),
    ("toy", "--max_grad_norm=nan", "must be finite and other than 0"),
    ("toy", "--max_grad_norm=0", "must be other than 0"),
    ("toy", "--clip_grad_norm=0", "must be other than 0"),
    ("toy", "--optimizer_step_limit=0", "must be 1 or more"),
    ("toy", "--ckpt_interval_minutes=-1", "must be 0 or more"),
    ("toy", "--ckpt_interval_steps=-5", "must be 0 or more"),
    ("toy", "--nonfinite_patience=0", "must be 1 or more"),
    ("toy", "--n_audio_to_save=-1", "must be 0 or more"),
    ("toy", "--n_audio_to_save=all", "expected an integer of 0 or more or null"),
    ("toy", "--valid_every=-1", "must be 0 or more"),
    ("toy", "--batch_size=0", "must be above 0"),
    ("toy", "--segment_seconds=0", "must be from 0.01 to 3600"),
    ("toy", "--segment_seconds=.inf", "must be finite and from 0.01 to 3600"),
    ("toy", "--eval_chunk_seconds=1e-9", "must be from 0.1 to 1000000"),
    ("toy", "--seed=4294967296", "must be from 0 to 4294967295"),
    ("toy", "--num_workers=-1", "must be from 0 to 1024"),
    ("toy", "--checkpoint_minutes=-1", "must be 0 or more"),
    ("toy", "--ddp_timeout=0", "must be from 1 to"),
    ("toy", "--warmup_steps=-1", "must be 0 or more"),
    ("toy", "--threshold=1000", "must be below 100"),
    ("toy", "--loss_upper_lim=-1000", "must be above -100"),
    ("toy", "--dont_halve_until_epoch=-1", "must be 0 or more"),
    ("toy", "--dropout=1", "must be from 0 to below 1"),
    ("toy", "--noise_snr_db=[-3, 1000]", "must be from -100 to 100"),
    ("toy", "--optimizer={weight_decay: .nan}", "must be finite"),
    ("toy_music", "--stride_seconds=1e-6", "must be from 0.01 to 3600"),
    ("toy_music", "--loss_upper_lim=0", "must be above 0"),
    ("toy_music", "--loss_memory=0", "must be 1 or more"),
    ("toy_music", "--weights=[-1, 1]", "must be 0 or more"),
    ("toy_lora", "--lora_alpha=0", "must be above 0"),
    ("toy_lora", "--lora_dropout=1", "must be from 0 to below 1"),
    ("toy_lora", "--lora_rank=0", "must be 1 or more"),
]


@pytest.mark.parametrize(("name", "option", "message"), REFUSED)
def test_what_can_never_train_is_refused_before_anything_is_read(
    tmp_path, monkeypatch, name, option, message
):
    monkeypatch.chdir(tmp_path)
    command = [str(ROOT / "tests" / f"{name}.yaml"), "--data_folder=/none", option]
    with pytest.raises(HparamsError) as error:
        train.main(command)
    text = str(error.value)
    assert option.strip("-").split("=")[0] in text and "\n" not in text
    assert message in text
    assert not list(tmp_path.iterdir())


def test_a_file_is_held_to_the_ranges_too(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"extends: {TOY}\nwarmup_steps: -1\n")
    with pytest.raises(HparamsError, match="warmup_steps=-1: must be 0 or more"):
        load_hparams(mine, {"data_folder": "/none"})


def test_help_says_the_ranges():
    text = usage([TOY, "--help"])
    for name, limits in [
        ("grad_accumulation_factor", "[1 or more]"),
        ("max_grad_norm", "[other than 0]"),
        ("threshold=-30.0", "[a number below 100]"),
        ("seed=1234", "[an integer from 0 to 4294967295]"),
    ]:
        lines = re.findall(rf"--{name} .*(?:\n {{20,}}.*)*", text)
        assert limits in " ".join(lines[-1].split())
