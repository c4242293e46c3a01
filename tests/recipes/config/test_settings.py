"""Which settings a resume compares, and how it tells what changed."""

from types import SimpleNamespace

import pytest

from modules.runtime.errors import HparamsError
from recipes.config.load import load_hparams
from recipes.config.schema import MusicLoraSettings, SpeechLoraSettings
from recipes.config.settings import (
    changed_settings,
    check_settings,
    describe,
    settings_of,
)
from tests import ROOT
from tests.recipes.config.test_load import RECIPES

TOY = ROOT / "tests" / "toy.yaml"


def settings(**overrides: object) -> dict[str, object]:
    given = {"data_folder": "/data", **overrides}
    return settings_of(load_hparams(TOY, given)[1])


def test_what_is_trained_is_compared():
    changed = changed_settings(
        settings(), settings(lr=0.5, batch_size=2, speed_changes=None, dropout=0.1)
    )
    assert changed["lr"] == (0.00015, 0.5)
    assert changed["optimizer.lr"] == (0.00015, 0.5)
    text = describe(changed)
    assert text == (
        "batch_size: 1 -> 2; dropout: 0.0 -> 0.1; lr: 0.00015 -> 0.5; "
        "speed_changes: [95, 100, 105] -> None"
    )


def test_places_logs_workers_and_length_are_free():
    now = settings(
        data_folder="/elsewhere",
        output_folder="/out",
        N_epochs=7,
        num_workers=9,
        log_every=3,
        valid_every=2,
        keep_checkpoints=4,
        allow_changes=True,
    )
    assert changed_settings(settings(), now) == {}


def test_another_object_is_named():
    other = settings_of("optimizer: !name:torch.optim.SGD\n    lr: 0.1\n")
    adam = settings_of("optimizer: !name:torch.optim.Adam\n    lr: 0.1\n")
    assert describe(changed_settings(adam, other)) == (
        "optimizer: !name:torch.optim.Adam -> !name:torch.optim.SGD"
    )


def test_a_default_that_is_given_is_no_change():
    own = settings_of(
        "separator: !new:modules.models.htdemucs.HTDemucs\n    nfft: 256\n"
        "optimizer: !name:torch.optim.Adam\n    lr: 0.1\n"
    )
    defaults = {"separator.t_heads": 8, "optimizer.betas": "[0.9, 0.999]"}
    assert changed_settings(own, own | defaults) == {}
    assert changed_settings(own | defaults, own) == {}
    other = own | {"separator.t_heads": 4, "optimizer.betas": "[0.9, 0.9]", "lr": 1}
    assert changed_settings(own, other) == {
        "separator.t_heads": (8, 4),
        "optimizer.betas": ("[0.9, 0.999]", "[0.9, 0.9]"),
        "lr": ("not set", 1),
    }


def test_every_value_is_plain():
    for path in RECIPES:
        text = load_hparams(path, {"data_folder": "/d", "pretrained": "/p"})[1]
        for key, value in settings_of(text).items():
            assert value is None or type(value) in (bool, int, float, str), key


@pytest.mark.parametrize(
    "name", sorted(SpeechLoraSettings.free() | MusicLoraSettings.free())
)
def test_a_free_setting_exists(name):
    texts = [path.read_text() for path in (ROOT / "hparams").glob("*.yaml")]
    assert any(line.startswith(f"{name}:") for t in texts for line in t.splitlines())


def test_a_test_compares_what_the_network_makes_of_its_weights():
    now = settings()
    before = {**now, "separator.num_sources": 3, "separator.dropout": 0.5, "lr": 0.5}
    found = SimpleNamespace(path="CKPT+1", meta={"settings": before})
    with pytest.raises(HparamsError, match="settings: separator.num_sources: 3 -> 2"):
        check_settings(found, now, allowed=False, to_test=True)
    changed = check_settings(found, now, allowed=True, to_test=True)
    assert list(changed) == ["separator.num_sources"]
    before = {**now, "sample_rate": 16000}
    found.meta["settings"] = before
    with pytest.raises(HparamsError, match="settings: sample_rate: 16000 -> 8000"):
        check_settings(found, now, allowed=False, to_test=True)


def test_how_a_network_computes_is_free():
    path = ROOT / "hparams" / "htdemucs_tiny.yaml"
    texts = [
        load_hparams(path, {"data_folder": "/x", "activation_checkpointing": value})[1]
        for value in (False, True)
    ]
    assert changed_settings(*map(settings_of, texts)) == {}
