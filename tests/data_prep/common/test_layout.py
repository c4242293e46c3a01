"""Which folders a run asks for."""

import inspect

import pytest

from data_prep import librimix, music, talkers, wham, whamr, wsj0mix
from data_prep.common.layout import Layout, find_parts

LAYOUT = Layout({"a": "train", "b": "train", "tt": "test"}, {"mix": ("s#",)}, "", False)


@pytest.mark.parametrize("package", [librimix, music, talkers, wham, whamr, wsj0mix])
def test_every_set_can_be_prepared_for_a_test_alone(package):
    parameters = inspect.signature(package.prepare).parameters
    assert "test_folder" in parameters and "splits" in parameters


def test_a_test_asks_for_no_training_set(tmp_path):
    for part in ("mix", "s1", "s2"):
        (tmp_path / "tt" / part).mkdir(parents=True)
    found = find_parts([LAYOUT], tmp_path, 2, 8000, "min", splits=["test"])
    assert list(found) == ["test"] and found["test"].mixture == tmp_path / "tt" / "mix"
