"""Packages of demucs: the configuration must be ours, the sources go by name."""

import inspect
import json
import logging
import tempfile
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from modules.runtime.errors import PretrainedError
from modules.runtime.tensors import save_tensors
from modules.weights.demucs import (
    DEMUCS_DEFAULTS,
    DEMUCS_FIXED,
    DEMUCS_IGNORED,
    Package,
    arguments_of,
    read_bag,
)
from modules.weights.pretrained import load_pretrained
from modules.weights.stated import Stated
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


def loaded(model, state, klass=KLASS, args=(), **options):
    """Load a package of these arguments as `load_pretrained` does."""
    package = Package(klass, args, arguments(**options), state)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        metadata = {
            "klass": package.klass,
            "args": json.dumps(package.args),
            "kwargs": json.dumps(package.kwargs, default=as_json),
        }
        save_tensors(path, state, metadata)
        load_pretrained(model, path)
    return model


def as_json(value):
    parts = value.as_integer_ratio()
    return {"_type": "fraction", "numerator": parts[0], "denominator": parts[1]}


def test_sources_in_another_order_are_mapped_by_name():
    theirs = tiny(seed=1, sources=["vocals", "drums", "bass", "other"])
    ours = loaded(tiny(seed=2), theirs.state_dict(), sources=theirs.sources)
    truth, estimate = theirs.eval()(song(800)), ours.eval()(song(800))
    for index, name in enumerate(SOURCES):
        torch.testing.assert_close(
            estimate[:, index], truth[:, theirs.sources.index(name)]
        )


@pytest.mark.parametrize(
    "options, line",
    [
        ({"sources": ["vocals", "rest"]}, "drums starts from drums, .* vocals, rest"),
        ({"t_heads": 4}, "t_heads 4, here 2; .*--separator='{t_heads: 4}'"),
        ({"samplerate": 44100}, "sample_rate 44100, here .*--sample_rate=44100"),
        ({"cac": False}, r"cac=False \(supported is True\)"),
        ({"t_emb": "cape"}, r"t_emb=cape \(supported is sin\)"),
        ({"use_train_segment": False}, "use_train_segment"),
        ({"channels_time": 16}, "channels_time"),
    ],
)
def test_another_configuration_is_one_line(options, line):
    model = tiny()
    with pytest.raises(PretrainedError, match=line) as error:
        loaded(model, model.state_dict(), **options)
    assert "\n" not in str(error.value)


def test_another_segment_is_said(caplog):
    with caplog.at_level(logging.INFO):
        loaded(tiny(), tiny().state_dict(), segment=10)
    assert "segments of 10 s, here 1.2 s" in caplog.text


def test_what_is_left_out_of_a_package_has_the_default_of_demucs():
    model, given = tiny(), arguments()
    del given["dconv_mode"]
    named = arguments_of(Package(KLASS, [], given, {}))
    stated = Stated("HTDemucs", named).differences(model, None)
    assert stated == {"dconv_mode": (1, 3)}


def test_every_argument_of_demucs_is_known():
    parameters = inspect.signature(type(demucs(1, **CONFIG))).parameters
    known = {**DEMUCS_DEFAULTS, **DEMUCS_FIXED}
    assert parameters.keys() == {"sources"} | known.keys() | DEMUCS_IGNORED
    for name, value in known.items():
        assert parameters[name].default == value, name


def test_what_does_not_matter_may_differ(caplog):
    model = tiny()
    with caplog.at_level(logging.WARNING):
        loaded(model, model.state_dict(), t_dropout=0.5, multi_freqs=[], t_lr=0.1)
        assert not caplog.records
        loaded(model, model.state_dict(), misspelt=1)
    assert "misspelt" in caplog.text


def test_another_class_is_refused():
    model = tiny()
    with pytest.raises(PretrainedError, match="holds a demucs.hdemucs.HDemucs"):
        loaded(model, model.state_dict(), klass="demucs.hdemucs.HDemucs")
    with pytest.raises(PretrainedError, match="positional"):
        loaded(model, model.state_dict(), args=(SOURCES,))


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
