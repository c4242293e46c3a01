"""Figures of the audit, by hand."""

import pytest

from benchmarks.label_noise import main
from modules.audit import average_precision, precision_recall, table

WRONG = {("a", "drums"): True, ("a", "bass"): False, ("b", "drums"): True}
SCORE = {("a", "drums"): 0.9, ("a", "bass"): 0.8, ("b", "drums"): 0.1}


def test_average_precision_is_the_mean_precision_at_each_hit():
    assert average_precision(SCORE, WRONG) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision({k: -v for k, v in SCORE.items()}, WRONG) == pytest.approx(
        (1 + 2 / 3) / 2
    )
    assert average_precision(dict.fromkeys(WRONG, 1.0), WRONG) == pytest.approx(2 / 3)


def test_what_has_no_score_is_never_found():
    assert average_precision({("a", "drums"): 1.0}, WRONG) == pytest.approx(0.5)


def test_precision_and_recall():
    assert precision_recall([("a", "drums"), ("a", "bass")], WRONG) == (0.5, 0.5)


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
    assert table(WRONG)[-1].startswith("| chance | | 0.67")
    with pytest.raises(SystemExit, match="no stem"):
        main([f"--truth={tmp_path}/truth.csv"])
