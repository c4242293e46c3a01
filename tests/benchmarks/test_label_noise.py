"""Figures of the suspicion, by hand."""

import runpy
import sys

import pytest

from benchmarks.label_noise import main


def test_the_table_from_files(tmp_path, capsys):
    (tmp_path / "truth.csv").write_text(
        "track,stem,is_clean\na,drums,0\na,bass,1\nb,drums,0\nheld,drums,0\n"
    )
    (tmp_path / "s.csv").write_text(
        "track,stem,offered,dropped,suspicion\na,drums,4,3,0.75\na,bass,4,1,0.25\n"
        "b,drums,4,2,0.5\n"
    )
    (tmp_path / "m.csv").write_text(
        "track,stem,margin_db\na,drums,-3\na,bass,40\nb,drums,25\n"
    )
    main([f"--truth={tmp_path}/truth.csv", f"--suspicion={tmp_path}/s.csv",
          f"--margins={tmp_path}/m.csv"])  # fmt: skip
    out = capsys.readouterr().out
    assert "2 of 3 stems are wrong" in out
    assert (
        "| suspicion (dropped more than the mean stem) | 2 | 1.00 | 1.00 | 1.00 |"
        in out
    )
    assert "| stem filter (margin under 20 dB) | 1 | 1.00 | 0.50 | 1.00 |" in out
    with pytest.raises(SystemExit, match="no stem"):
        main([f"--truth={tmp_path}/truth.csv"])


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        ("label_noise", ["--truth=FOLDER/none.csv"], "none.csv: does not exist"),
        (
            "label_noise",
            ["--truth=FOLDER/truth.csv", "--margins=FOLDER/truth.csv"],
            "truth.csv: expected the columns track, stem and margin_db",
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
