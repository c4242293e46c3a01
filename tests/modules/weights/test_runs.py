"""A run's folder is read as data, and only networks of `modules/models` are made."""

import pytest
import torch
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG

from modules.models.sepformer import SepFormer
from modules.runtime.errors import ExportError, HparamsError
from modules.weights.checkpointer import AtomicCheckpointer
from modules.weights.pretrained import load_pretrained
from modules.weights.runs import load_tested, network_class, read_run
from tests.toy import same_weights

SIZE = "{encoder_channels: 16, chunk_size: 10, intra_layers: 1, inter_layers: 1}"
SETTINGS = f"""
sample_rate: 8000
monitor: loss
average_last: 0
modules:
  separator: &id001 !new:modules.models.sepformer.SepFormer {SIZE}
separator: *id001
optimizer: !name:torch.optim.Adam
  lr: 0.001
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "hyperparams.yaml").write_text(SETTINGS)
    return tmp_path


def test_settings_are_plain_data(run):
    for place in (run, run / "hyperparams.yaml"):
        known = read_run(place)
        assert known.kind is SepFormer and known.folder == run
        assert known.arguments["encoder_channels"] == 16
        assert (known.sample_rate, known.value("sources")) == (8000, None)
        assert known.value("optimizer") == {"lr": 0.001}
        assert known.value("no_such_key") is None
        assert not known.has_adapters
        assert not known.make_network().training


def test_the_best_checkpoint_by_the_monitor_was_tested(run):
    best, newest = read_run(run).make_network(), read_run(run).make_network()
    checkpointer = AtomicCheckpointer(run / "save", {"separator": best})
    with pytest.raises(ExportError, match="no checkpoint; train first"):
        load_tested(run)
    checkpointer.save_checkpoint(meta={"loss": 2.0})
    checkpointer.recoverables["separator"] = newest
    checkpointer.save_checkpoint(meta={"loss": 1.0})
    assert not same_weights(best.state_dict(), newest.state_dict())
    assert same_weights(load_tested(run).state_dict(), best.state_dict())
    (run / "hyperparams.yaml").write_text(SETTINGS.replace("monitor: loss", ""))
    assert same_weights(load_tested(run).state_dict(), newest.state_dict())


def test_the_mean_of_the_newest_epochs_was_tested(run):
    changed = SETTINGS.replace("average_last: 0", "average_last: 2")
    (run / "hyperparams.yaml").write_text(changed)
    checkpointer = AtomicCheckpointer(run / "save")
    networks = [read_run(run).make_network() for _ in range(4)]
    for number, network in enumerate(networks):
        checkpointer.recoverables["separator"] = network
        within = {INTRA_EPOCH_CKPT_FLAG: True} if number == 3 else {}
        checkpointer.save_checkpoint(meta={"loss": float(number), **within})
        if number == 0:
            with pytest.raises(HparamsError, match="average_last=2 needs .*here: 1"):
                load_tested(run)
    second, third = networks[1].state_dict(), networks[2].state_dict()
    for name, mean in load_tested(run).state_dict().items():
        torch.testing.assert_close(mean, (second[name] + third[name]) / 2)
    load_pretrained(networks[0], run)  # what follows begins with it
    assert same_weights(networks[0].state_dict(), load_tested(run).state_dict())


def test_the_mean_of_the_best_epochs_was_tested(run):
    changed = SETTINGS.replace("average_last: 0", "average_best: 2")
    (run / "hyperparams.yaml").write_text(changed)
    checkpointer = AtomicCheckpointer(run / "save")
    networks = [read_run(run).make_network() for _ in range(4)]
    for value, network in zip((2.0, float("nan"), 3.0, 1.0), networks, strict=True):
        checkpointer.recoverables["separator"] = network
        checkpointer.save_checkpoint(meta={"loss": value})
        if value == 2:
            with pytest.raises(HparamsError, match="average_best=2 needs .*here: 1"):
                load_tested(run)
    first, third = networks[0].state_dict(), networks[2].state_dict()
    for name, mean in load_tested(run).state_dict().items():
        torch.testing.assert_close(mean, (first[name] + third[name]) / 2)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "tests.toy.ToySeparator",
        "modules.models.sepformer.nn.Linear",
        "modules.models.sepformer.Tensor",
        "modules.models.sepformer.NoSuchClass",
        "modules.models.no_such_file.SepFormer",
        "modules.models.SepFormer",
        "modules.models..os.System",
        "modules.weights.ema.EMA",
        ["modules.models.sepformer.SepFormer"],
        None,
    ],
)
def test_no_other_class_can_be_named(run, name):
    assert network_class(name) is None
    text = SETTINGS.replace("modules.models.sepformer.SepFormer", str(name))
    (run / "hyperparams.yaml").write_text(text)
    with pytest.raises(ExportError):
        read_run(run)


@pytest.mark.parametrize(
    "text, message",
    [
        ("- a list\n", "holds no settings"),
        ("sample_rate: 8000\n", "its separator is missing; only networks in modules"),
        ("separator: {", "cannot be read"),
        ("separator: \x00", "cannot be read"),
        (f"separator: !new:tests.toy.ToySeparator {SIZE}", "put the file of the net"),
        (SETTINGS.replace("chunk_size: 10", "chunk_size: !name:os.system []"), "plain"),
        (SETTINGS.replace("8000", "!apply:os.system [ls]"), "sample_rate: .* plain"),
    ],
)
def test_other_files_are_refused_in_one_line(run, text, message):
    (run / "hyperparams.yaml").write_text(text)
    with pytest.raises(ExportError, match=message) as error:
        read_run(run)
    assert "\n" not in str(error.value)


def test_arguments_that_the_network_does_not_take_are_named(run):
    for wrong in ("encoder_channel: 16", "encoder_channels: many"):
        text = SETTINGS.replace("encoder_channels: 16", wrong)
        (run / "hyperparams.yaml").write_text(text)
        with pytest.raises(ExportError, match=f"{run}: separator: "):
            read_run(run).make_network()


def test_adapters_are_not_asked_of_a_run_without(run):
    for lora in ("separate", "none"):
        with pytest.raises(ExportError, match="trained no adapters"):
            load_tested(run, lora)
    with pytest.raises(ExportError, match="use one of merged, separate, none"):
        load_tested(run, "both")


def test_what_matters_in_training_alone_is_left_out(tmp_path):
    text = (
        "!new:modules.models.sepreformer.SepReformer {stages: 1, auxiliary_heads: True}"
    )
    (tmp_path / "hyperparams.yaml").write_text(f"separator: {text}\n")
    assert read_run(tmp_path).arguments == {"stages": 1}
