"""The comparison of ways to adapt: its commands, its table, and a small run."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model

from benchmarks.adapt import ARMS, command_of, main, parse, seconds_per_step, table
from modules.models.htdemucs import HTDemucs
from tests.e2e.test_lora import SIZE, TOY
from tests.toy import make_songs

ARGUMENTS = ["--base=base", "--data_folder=songs", "--out=out"]


def test_arms_differ_in_what_trains_and_in_their_folder_alone():
    options, further = parse([*ARGUMENTS, "--lr", "0.1", "full=0.2", "--channels=8"])
    assert further == ["--channels=8"]
    commands = {arm: command_of(arm, options, further) for arm in ARMS}
    same = set.intersection(*(set(command) for command in commands.values()))
    assert "--channels=8" in same and "--examples_per_epoch=1200" in same
    for arm, command in commands.items():
        rate = "--lr=0.2" if arm == "full" else "--lr=0.1"
        folder = f"--output_folder={Path('out').resolve() / arm}"
        assert set(command) - same - set(ARMS[arm]) - {rate} == {folder}


def test_the_table_pairs_tracks():
    entry = {"lr": 0.001, "share": 0.05, "peak_mb": 700.4, "file_mb": 0.1234}
    figures = {"before": entry | {"seconds": None}, "full": entry | {"seconds": 0.5}}
    scores = {
        "before": {"a": {"nsdr": 1.0, "sdr": 0.0}, "b": {"nsdr": 5.0, "sdr": 0.0}},
        "full": {"a": {"nsdr": 2.0, "sdr": 1.0}, "b": {"nsdr": 6.0, "sdr": 1.0}},
    }
    assert table(figures, scores)[2:] == [
        "| before |  | 3.00 ± 2.00 |  | 0.00 ± 0.00 | 0 | 700 |  |  |",
        "| full | 0.001 | 4.00 ± 2.00 | 1.00 ± 0.00 | 1.00 ± 0.00 | 5.0% | 700 | 0.12 "
        "| 0.50 |",
    ]


def test_seconds_per_step_are_the_median(tmp_path):
    curves = tmp_path / "curves.csv"
    rows = "".join(
        f"step,{n},examples_per_second,{v}\n" for n, v in enumerate([1, 8, 9])
    )
    curves.write_text(f"kind,step,name,value\nstep,1,loss,3\n{rows}")
    assert seconds_per_step(curves, batch_size=4) == 0.5
    assert seconds_per_step(tmp_path / "none.csv", 4) is None


@pytest.mark.parametrize(
    "more", [["--lr", "best=1"], ["--arms", "best"], ["channels"], ["--steps=0"]]
)
def test_a_wrong_command_line_is_refused(more, capsys):
    with pytest.raises(SystemExit):
        parse([*ARGUMENTS, *more])
    assert "error: " in capsys.readouterr().err


def test_a_run_from_one_base(tmp_path, capsys):
    (tmp_path / "base").mkdir()
    torch.manual_seed(7)
    model = HTDemucs(["low", "high"], 0.5, **SIZE)
    save_model(model, tmp_path / "base/model.safetensors")
    command = [
        f"--base={tmp_path / 'base'}", f"--out={tmp_path / 'out'}", f"--recipe={TOY}",
        f"--data_folder={make_songs(tmp_path / 'songs')}", "--steps=2",
        "--arms", "full", "--valid_tracks=1", "--num_workers=0", "--device=cpu",
    ]  # fmt: skip
    main(command)
    text = (tmp_path / "out/table.md").read_text()
    assert capsys.readouterr().out == text + "\n"
    cells = [cell.strip() for cell in text.splitlines()[-1].split("|")[1:-1]]
    assert cells[:2] == ["full", "0.01"] and cells[5] == "100.0%"
    size = sum(p.numel() for p in model.parameters()) * 4e-6
    assert size < float(cells[7]) < size + 0.05  # MB, with the names
    assert float(cells[6]) > 100 and float(cells[8]) > 0
    main(command)  # nothing is run again
    assert (tmp_path / "out/table.md").read_text() == text
    with pytest.raises(SystemExit, match="another command"):
        main([*command, "--seed=2"])
