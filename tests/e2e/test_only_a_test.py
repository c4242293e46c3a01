"""`--test_only` needs nothing but a test set, the run's own or another one."""

import json
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest

import train
from modules.runtime.errors import HparamsError
from recipes.evaluation import make_manifests
from tests.e2e.test_music import arguments, songs  # noqa: F401  # fixtures
from tests.modules.monitor.listen.examples import data_of
from tests.toy import make_corpus, make_songs


def scores(run: Path) -> str:
    return (run / "test_results.csv").read_text()


def test_speech_with_nothing_but_tt(toy_arguments, corpus, tmp_path):
    run, tests = tmp_path / "run", tmp_path / "tests"
    train.main(toy_arguments())
    expected, settings = scores(run), (run / "hyperparams.yaml").read_text()
    part = corpus.relative_to(corpus.parent) / "wav8k" / "min" / "tt"
    shutil.copytree(corpus.parent / part, tests / part)
    (run / "test_results.csv").unlink()
    train.main(toy_arguments(test_only=None, data_folder=tests))
    assert scores(run) == expected
    # What the card of an export says of the training is still there.
    notes = settings.splitlines()[:2]
    assert notes[1].startswith("# versions: ") and notes[0].startswith(
        "# command: python train.py "
    )
    assert (run / "hyperparams.yaml").read_text().splitlines()[:2] == notes
    # The same weights, as those that somebody has published.
    given = {"pretrained": run, "output_folder": tmp_path / "other"}
    train.main(toy_arguments(test_only=None, data_folder=tests, **given))
    assert scores(tmp_path / "other") == expected
    assert (tmp_path / "other" / "test_results.json").is_file()


def test_speech_of_another_folder(toy_arguments, tmp_path, monkeypatch, capsys):
    other = make_corpus(tmp_path / "others", (0, 0, 5))
    summary = train.main(toy_arguments(N_epochs=1, test_folder=other))
    assert summary["count"] == 5
    own = scores(tmp_path / "run")
    train.main(toy_arguments(N_epochs=1, test_only=None, data_folder=other))
    assert scores(tmp_path / "run") == own
    given = {"data_folder": "/nowhere", "test_folder": other}
    train.main(toy_arguments(N_epochs=1, test_only=None, **given))
    assert scores(tmp_path / "run") == own

    def stoi(*_: object) -> float:
        raise ValueError("too short")

    package = SimpleNamespace(stoi=stoi, __spec__=ModuleSpec("pystoi", None))
    monkeypatch.setitem(sys.modules, "pystoi", package)
    names = "[stoi, snr_i, l1_freq]"
    train.main(toy_arguments(N_epochs=1, test_only=None, metrics=names, **given))
    header, row = scores(tmp_path / "run").splitlines()[:2]
    assert header == "id,si_snr,stoi,snr_i,l1_freq"
    assert row.split(",")[1] == own.splitlines()[1].split(",")[1]
    assert row.split(",")[2] == "", "nothing, and the others count"
    assert "all values in dB but for STOI, L1 freq; an 'i'" in capsys.readouterr().out
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count(": it needs 0.4 s of sound") == 1
    page = data_of(tmp_path / "run" / "listen.html")
    assert page["metrics"]["snr_i"] == "SNRi" and page["units"]["l1_freq"] == ""


def test_songs_of_another_folder(arguments, tmp_path):  # noqa: F811
    others = make_songs(tmp_path / "others", tracks=2)
    train.main(arguments())
    given = {"data_folder": "/nowhere", "test_folder": others}
    chosen = {"metrics": "[bleedless]", **given}
    train.main([*arguments(**chosen), "--test_only"])
    assert scores(tmp_path / "run").count("\n") == 3
    names = [m + s for m in ("nsdr", "bleedless") for s in ("", "_low", "_high")]
    assert scores(tmp_path / "run").startswith(",".join(["id", *names]))
    metrics = json.loads((tmp_path / "run" / "test_results.json").read_text())
    assert metrics["count"] == 2


def test_a_data_set_without_test_folder_says_so():
    def prepare(data_folder: str = "") -> dict[str, str]:
        return {"all": data_folder}

    assert make_manifests(prepare, True, None) == {"all": ""}
    with pytest.raises(HparamsError, match="test_folder: this data set's prepare"):
        make_manifests(prepare, True, "/elsewhere")
