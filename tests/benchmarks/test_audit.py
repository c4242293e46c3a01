"""Figures of the audit, by hand."""

import runpy
import sys

import pytest

from benchmarks.audit import main

AUDIT = "track,stem,wrong,sounds_like,loss\n"


def test_the_tables_from_files(tmp_path, capsys):
    (tmp_path / "truth.csv").write_text(
        "track,stem,is_clean\na,drums,0\na,bass,1\nb,drums,0\nheld,drums,0\n"
    )
    for name, rows in {
        "1": "a,drums,0.9,bass,1\na,bass,0.5,,2\nb,drums,0.3,,3\n",
        "2": "a,drums,0.9,,3\nb,drums,0.8,,2\na,bass,0,,\n",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "audit.csv").write_text(AUDIT + rows)
    (tmp_path / "1" / "separated.csv").write_text(
        "run,track,stem,margin_db,cross\nr,a,drums,-3,0\nr,a,bass,40,0\nr,b,drums,25,0\n"
    )
    main([f"--truth={tmp_path}/truth.csv", "--audit", str(tmp_path / "1"),
          str(tmp_path / "2")])  # fmt: skip
    out = capsys.readouterr().out
    assert "2 of 3 stems are wrong" in out
    assert "| combined | 0.92 (0.83 to 1.00) | 0.83 (0.67 to 1.00) |" in out
    assert "| loss | 0.92 (0.83 to 1.00) |" in out
    assert "| filter | 1.00 | 1.00 |" in out
    assert "CCOM's rule (20 dB) flags 1: precision 1.00, recall 0.50." in out
    assert "wrong: precision 1.00 (1.00 to 1.00), recall 0.75 (0.50 to 1.00)." in out
    assert "| 0.8 to 1 | 3 | 1.00 |" in out


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (
            "audit",
            ["--truth=FOLDER/none.csv", "--audit=FOLDER"],
            "none.csv: does not exist",
        ),
        (
            "audit",
            ["--truth=FOLDER/truth.csv", "--audit=FOLDER"],
            "audit.csv: does not exist",
        ),
        ("mixing", ["--folder=FOLDER/none", "--copy=FOLDER/c"], "none: no such folder"),
    ],
)
def test_wrong_files_are_one_line(
    tmp_path, capsys, monkeypatch, module, options, message
):
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    (tmp_path / "truth.csv").write_text("track,stem,is_clean\na,drums,0\n")
    options = [option.replace("FOLDER", str(tmp_path)) for option in options]
    monkeypatch.setattr("sys.argv", [module, *options])
    monkeypatch.delitem(sys.modules, f"benchmarks.{module}", raising=False)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(f"benchmarks.{module}", run_name="__main__")
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/{message}")
