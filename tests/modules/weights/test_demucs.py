"""Packages of demucs: the configuration must be ours, the sources go by name."""

import inspect
import logging
from fractions import Fraction

import pytest
import torch

from modules.runtime.errors import PretrainedError
from modules.weights.demucs import (
    DEMUCS_DEFAULTS,
    DEMUCS_FIXED,
    DEMUCS_IGNORED,
    Package,
    adapt_package,
    read_bag,
)
from tests.modules.models.test_htdemucs import (
    CONFIG,
    RATE,
    SEGMENT,
    SOURCES,
    TINY,
    demucs,
    song,
    tiny,
)

KLASS = "demucs.htdemucs.HTDemucs"


def arguments(**options):
    """Arguments of demucs' constructor that make `tiny()`."""
    return {
        "sources": SOURCES,
        "samplerate": RATE,
        "segment": Fraction(SEGMENT, RATE),
        "dconv_mode": 3,
        **TINY,
        **options,
    }


def adapt(model, state, klass=KLASS, args=(), **options):
    package = Package(klass, args, arguments(**options), state)
    return adapt_package(model, package)


def test_sources_in_another_order_are_mapped_by_name():
    theirs = tiny(seed=1, sources=["vocals", "drums", "bass", "other"])
    ours = tiny(seed=2)
    state = adapt(ours, theirs.state_dict(), sources=theirs.sources)
    ours.load_state_dict(state, strict=True)
    truth, estimate = theirs.eval()(song(800)), ours.eval()(song(800))
    for index, name in enumerate(SOURCES):
        torch.testing.assert_close(
            estimate[:, index], truth[:, theirs.sources.index(name)]
        )


@pytest.mark.parametrize(
    "options, line",
    [
        ({"sources": ["vocals", "rest"]}, r"sources: the package's \['vocals', 'rest'"),
        ({"segment": 10}, "segment: the package's 10, the model's 6/5"),
        ({"t_heads": 4}, "t_heads: the package's 4, the model's 2"),
        ({"samplerate": 44100}, "samplerate: the package's 44100"),
        ({"cac": False}, "cac: the package's False, supported is True"),
        ({"t_emb": "cape"}, "t_emb: the package's cape, supported is sin"),
        ({"use_train_segment": False}, "use_train_segment"),
        ({"channels_time": 16}, "channels_time"),
    ],
)
def test_another_configuration_is_listed(options, line):
    model = tiny()
    with pytest.raises(ValueError, match=line):
        adapt(model, model.state_dict(), **options)


def test_what_is_left_out_of_a_package_has_the_default_of_demucs():
    model = tiny()
    given = arguments()
    del given["dconv_mode"]
    with pytest.raises(ValueError, match="dconv_mode: the package's 1, the model's 3"):
        adapt_package(model, Package(KLASS, (), given, model.state_dict()))


def test_every_argument_of_demucs_is_known():
    parameters = inspect.signature(type(demucs(1, **CONFIG))).parameters
    known = {**DEMUCS_DEFAULTS, **DEMUCS_FIXED}
    assert parameters.keys() == {"sources"} | known.keys() | DEMUCS_IGNORED
    for name, value in known.items():
        assert parameters[name].default == value, name


def test_what_does_not_matter_may_differ(caplog):
    model = tiny()
    with caplog.at_level(logging.WARNING):
        adapt(model, model.state_dict(), t_dropout=0.5, multi_freqs=[], t_lr=0.1)
        assert not caplog.records
        adapt(model, model.state_dict(), misspelt=1)
    assert "misspelt" in caplog.text


def test_another_class_is_refused():
    model = tiny()
    with pytest.raises(ValueError, match="holds a demucs.hdemucs.HDemucs"):
        adapt(model, model.state_dict(), klass="demucs.hdemucs.HDemucs")
    with pytest.raises(ValueError, match="positional"):
        adapt(model, model.state_dict(), args=(SOURCES,))


def test_a_bag_names_the_files_of_its_models_and_their_weights(tmp_path):
    for name in ("aa-11.th", "bb-22.safetensors", "aaa.th", "bb.txt"):
        (tmp_path / name).touch()
    path = tmp_path / "bag.yaml"
    path.write_text("models: ['aa', 'bb']\nweights: [[1., 0.], [0., 1.]]\nsegment: 7")
    bag = read_bag(path)
    assert [file.name for file in bag.files] == ["aa-11.th", "bb-22.safetensors"]
    assert bag.weights_MS == [[1, 0], [0, 1]] and bag.segment_seconds == 7
    path.write_text("models: [aaa]")
    assert read_bag(path).weights_MS is None


@pytest.mark.parametrize(
    "text, message",
    [
        ("models: [cc]", "lacks its model cc.th"),
        ("models: [../aa]", "no bag .*models"),
        ("models: [aa]\nweights: [[1, 0]]", "no bag .*weights"),  # bass by none
        ("models: [aa]\nweights: [[1], [1]]", "no bag .*weights"),
        ("models: [aa]\nweights: [[.nan]]", "no bag .*weights"),
        ("lr: 1", "no bag .*models"),
        ("[", "not valid YAML"),
    ],
)
def test_another_yaml_is_no_bag(tmp_path, text, message):
    (tmp_path / "aa.th").touch()
    (tmp_path / "bag.yaml").write_text(text)
    with pytest.raises(PretrainedError, match=message):
        read_bag(tmp_path / "bag.yaml")
