"""Truths about the scores and the table that collects them.

Shapes: S source, T sample.
"""

import csv
import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from modules.metrics.measures import SDR_TAPS, framewise_sdr
from modules.metrics.scores import METRICS, ResultTable, score_example, score_song
from modules.runtime import distributed

RATE = 8000


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)) * 0.1


def sdr_by_least_squares(est_T: Tensor, target_T: Tensor) -> float:
    """BSS Eval's definition, term by term: project on all shifts of the target."""
    est, target = est_T.double().numpy(), target_T.double().numpy()
    shifts = np.zeros((len(est) + SDR_TAPS - 1, SDR_TAPS))
    for tap in range(SDR_TAPS):
        shifts[tap : tap + len(target), tap] = target
    est = np.concatenate([est, np.zeros(SDR_TAPS - 1)])
    taps, *_ = np.linalg.lstsq(shifts, est, rcond=None)
    wanted = shifts @ taps
    return 10 * np.log10(np.sum(wanted**2) / np.sum((est - wanted) ** 2))


@pytest.mark.parametrize("samples", [100, 511, 512, 2000])
def test_sdr_is_the_least_squares_definition_at_any_length(samples):
    target_ST = noise(2, samples, seed=1)
    est_ST = target_ST + noise(2, samples, seed=2)
    mix_T = target_ST.sum(0)
    scores = score_example(est_ST, target_ST, mix_T, RATE)
    true = [sdr_by_least_squares(est_ST[s], target_ST[s]) for s in range(2)]
    base = [sdr_by_least_squares(mix_T, target_ST[s]) for s in range(2)]
    assert scores["sdr"] == pytest.approx(np.mean(true), abs=1e-6)
    assert scores["sdr_i"] == pytest.approx(np.mean(true) - np.mean(base), abs=1e-6)


@pytest.mark.parametrize("snr_db", [0, 10, 30])
def test_independent_noise_of_known_level_gives_that_score(snr_db):
    """512 taps fit 512 of 40 000 dimensions of the noise: 0.06 dB at most."""
    target_ST = noise(2, 40000, seed=3)
    est_ST = target_ST + noise(2, 40000, seed=4) * 10 ** (-snr_db / 20)
    scores = score_example(est_ST, target_ST, target_ST.sum(0), RATE)
    assert scores["si_snr"] == pytest.approx(snr_db, abs=0.1)
    assert scores["sdr"] == pytest.approx(snr_db, abs=0.15)
    # two equally loud voices: the mixture itself is at 0 dB
    assert scores["si_snr_i"] == pytest.approx(snr_db, abs=0.1)
    assert scores["sdr_i"] == pytest.approx(snr_db, abs=0.15)


def test_filtering_costs_si_snr_but_not_sdr():
    target_T = noise(20000, seed=5)
    echo_T = target_T.clone()
    echo_T[100:] += 0.8 * target_T[:-100]
    scores = score_example(echo_T[None], target_T[None], target_T, RATE)
    assert scores["si_snr"] < 3
    assert scores["sdr"] > 20


def test_order_and_level_of_the_estimates_do_not_matter():
    target_ST = noise(3, 8000, seed=6)
    est_ST = target_ST + 0.3 * noise(3, 8000, seed=7)
    mix_T = target_ST.sum(0)
    scores = score_example(est_ST, target_ST, mix_T, RATE)
    turned = score_example(est_ST[[2, 0, 1]] * 1e-5, target_ST, mix_T, RATE)
    for name in METRICS:
        assert turned[name] == pytest.approx(scores[name], abs=1e-3)


def test_the_mixture_as_estimate_improves_nothing():
    target_ST = noise(2, 8000, seed=8)
    mix_T = target_ST.sum(0)
    scores = score_example(mix_T.expand(2, -1), target_ST, mix_T, RATE)
    assert scores["si_snr_i"] == 0 and scores["sdr_i"] == 0


def test_a_silent_source_is_left_out():
    target_ST = noise(3, 8000, seed=9)
    est_ST = target_ST + 0.1 * noise(3, 8000, seed=10)
    mix_T = target_ST[:2].sum(0)
    two = score_example(est_ST[:2], target_ST[:2], mix_T, RATE)
    target_ST[2] = 0
    three = score_example(est_ST.flip(0), target_ST, mix_T, RATE)
    assert three == pytest.approx(two)


def test_scores_are_bounded_where_the_formula_is_not():
    target_ST = noise(2, 8000, seed=11)
    mix_T = target_ST.sum(0)
    perfect = score_example(target_ST, target_ST, mix_T, RATE)
    assert perfect["si_snr"] == pytest.approx(100, abs=1e-3)
    assert perfect["sdr"] == pytest.approx(100, abs=1e-3)
    silent = score_example(torch.zeros(2, 8000), target_ST, mix_T, RATE)
    assert silent["si_snr"] == pytest.approx(-100, abs=1e-3)
    assert silent["sdr"] == pytest.approx(-100, abs=1e-3)


def test_what_has_no_score_is_nan():
    target_ST = noise(2, 4000, seed=12)
    est_ST, mix_T = target_ST.clone(), target_ST.sum(0)
    est_ST[0, 7] = math.nan
    for scores in (
        score_example(est_ST, target_ST, mix_T, RATE),
        score_example(target_ST, target_ST, est_ST.sum(0), RATE),
        score_example(target_ST, torch.zeros(2, 4000), mix_T, RATE),
    ):
        assert tuple(scores) == METRICS
        assert all(math.isnan(value) for value in scores.values())


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 9\), \(2, 9\) and \(8,\)"):
        score_example(noise(2, 9), noise(2, 9), noise(8), RATE)
    with pytest.raises(ValueError, match="sample rate must be positive, got 0"):
        score_example(noise(2, 9), noise(2, 9), noise(9), 0)


def test_summary_is_mean_and_standard_error_of_the_finite_rows(tmp_path):
    table = ResultTable()
    values = [3.0, 5.0, 10.0]
    for index, value in enumerate(values):
        table.add(f"row{index}", si_snr_i=value, sdr_i=2 * value)
    table.add("broken", si_snr_i=math.nan, sdr_i=1e9)
    table.add("worse", si_snr_i=1e9, sdr_i=-math.inf)
    summary = table.summary()
    assert (summary["count"], summary["non_finite"]) == (5, 2)
    assert summary["non_finite_ids"] == ["broken", "worse"]
    score = summary["metrics"]["si_snr_i"]
    assert score["count"] == 3
    assert score["mean"] == pytest.approx(6)
    error = np.std(values, ddof=1) / 3**0.5
    assert score["standard_error"] == pytest.approx(error)
    assert summary["metrics"]["sdr_i"]["mean"] == pytest.approx(12)
    path = table.write_json(tmp_path / "summary.json")
    assert json.loads(path.read_text()) == summary


def test_a_table_without_a_finite_row_says_so_in_strict_json(tmp_path):
    table = ResultTable()
    assert table.summary()["metrics"] == {}
    table.add("x", sdr=math.nan)
    text = table.write_json(tmp_path / "a.json").read_text()
    score = json.loads(text)["metrics"]["sdr"]
    assert score == {"mean": None, "standard_error": None, "median": None, "count": 0}
    assert "NaN" not in text


def test_csv_is_sorted_exact_and_survives_odd_ids(tmp_path):
    ids = ['b,"c"', "a\nnewline", "é ü 日本", "=1+1", "plain"]
    table = ResultTable()
    for index, id_ in enumerate(ids):
        table.add(id_, si_snr=index / 3, sdr=math.nan)
    path = table.write_csv(tmp_path / "new" / "rows.csv")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == sorted(ids)
    for row in rows:
        assert float(row["si_snr"]) == ids.index(row["id"]) / 3
        assert math.isnan(float(row["sdr"]))
    assert [p.name for p in path.parent.iterdir()] == ["rows.csv"]


def test_rows_must_have_the_same_metrics_and_a_repeated_id_counts_once():
    table = ResultTable()
    table.add("a", sdr=1.0, si_snr=2.0)
    table.add("a", si_snr=2.0, sdr=1.0)
    assert len(table) == 1
    with pytest.raises(ValueError, match="row 'b' has metrics .*sdr_i"):
        table.add("b", sdr_i=1.0)


def _merge(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    table = ResultTable()
    # 5 examples between 2 ranks: the sampler gives number 0 to both
    for index in (0, 2, 4) if rank == 0 else (1, 3, 0):
        table.add(f"row{index}", si_snr_i=float(index))
    table.merge_ranks()
    table.write_csv(f"{folder}/rank{rank}.csv")
    table.write_json(f"{folder}/rank{rank}.json")
    distributed.leave_process_group()


@pytest.mark.ddp
def test_two_ranks_merge_to_the_table_of_one(tmp_path):
    torch.multiprocessing.spawn(_merge, args=(str(tmp_path),), nprocs=2)
    one = ResultTable()
    for index in range(5):
        one.add(f"row{index}", si_snr_i=float(index))
    expected_csv = one.write_csv(tmp_path / "one.csv").read_text()
    expected_json = one.write_json(tmp_path / "one.json").read_text()
    for rank in range(2):
        assert (tmp_path / f"rank{rank}.csv").read_text() == expected_csv
        assert (tmp_path / f"rank{rank}.json").read_text() == expected_json


def test_nsdr_is_one_ratio_over_channels_and_time():
    target_SCT, error_SCT = noise(2, 2, 5000), noise(2, 2, 5000, seed=1)
    target_SCT[1] *= 0.1
    scores = score_song(
        target_SCT + 0.1 * error_SCT, target_SCT, target_SCT.sum(0), 1000, ["a", "b"]
    )
    for k, name in enumerate("ab"):
        ratio = (target_SCT[k] ** 2).sum() / ((0.1 * error_SCT[k]) ** 2).sum()
        assert scores[f"nsdr_{name}"] == pytest.approx(float(10 * ratio.log10()), 1e-5)
    assert scores["nsdr"] == pytest.approx((scores["nsdr_a"] + scores["nsdr_b"]) / 2)


@pytest.mark.parametrize("level", [0.0, 1e-6])
def test_a_silent_target_has_no_score_and_leaves_those_of_the_others(level):
    target_SCT = noise(3, 2, 3000)
    target_SCT[1] *= level
    est_SCT = target_SCT + 0.01 * noise(3, 2, 3000, seed=1)
    mix_CT = target_SCT.sum(0)
    scores = score_song(est_SCT, target_SCT, mix_CT, 1000, ["a", "b", "c"])
    assert scores["nsdr_b"] is scores["sdr_b"] is None
    sounding = [0, 2]
    alone = score_song(
        est_SCT[sounding], target_SCT[sounding], mix_CT, 1000, ["a", "c"]
    )
    assert {name: scores[name] for name in alone} == alone
    assert scores["nsdr"] == pytest.approx(40, abs=1)
    table = ResultTable()
    table.add("silent", **scores)
    table.add("usual", **{name: 5.0 for name in scores})
    summary = table.summary()
    assert (summary["count"], summary["non_finite"]) == (2, 0)
    assert summary["metrics"]["sdr_b"]["count"] == 1
    assert summary["metrics"]["nsdr_b"]["mean"] == 5
    assert summary["metrics"]["nsdr_a"]["count"] == 2


def test_a_song_of_silence_has_no_score_unless_the_estimate_is_not_finite():
    silence_SCT = torch.zeros(2, 2, 3000)
    mix_CT, names = silence_SCT[0], ["a", "b"]
    scores = score_song(noise(2, 2, 3000), silence_SCT, mix_CT, 1000, names)
    assert set(scores.values()) == {None} and len(scores) == 6
    scores = score_song(silence_SCT / 0, silence_SCT, mix_CT, 1000, names)
    assert all(math.isnan(value) for value in scores.values())


def test_sdr_is_the_median_of_whole_seconds_that_sound():
    target_SCT = noise(2, 2, 5500)
    est_SCT = target_SCT.clone()
    gains = (0.9, 0.5, 0.99, 0.8, 0.7, 0.0)  # the sixth is no whole second
    for second, gain in enumerate(gains):
        est_SCT[0, :, 1000 * second : 1000 * (second + 1)] *= gain
    target_SCT[1, :, 2000:3000] = 0  # nothing can be scored in the third
    sdr_SL = framewise_sdr(est_SCT, target_SCT, 1000)
    assert sdr_SL.shape == (2, 5)
    assert sdr_SL[:, 2].isnan().all()
    expected = [-20 * math.log10(1 - gain) for gain in gains[:5]]
    kept = [0, 1, 3, 4]
    assert sdr_SL[0, kept].tolist() == pytest.approx([expected[k] for k in kept])
    assert (sdr_SL[1, kept] == 100).all(), "a perfect estimate is bounded"
    scores = score_song(est_SCT, target_SCT, target_SCT.sum(0), 1000, ["a", "b"])
    assert scores["sdr_a"] == pytest.approx(np.median([expected[k] for k in kept]))


def test_songs_with_nan_have_nan_scores_of_every_name():
    target_SCT = noise(2, 2, 3000)
    est_SCT = target_SCT.clone()
    est_SCT[0, 0, 7] = math.nan
    names = ["a", "b"]
    scores = score_song(est_SCT, target_SCT, target_SCT.sum(0), 1000, names)
    assert math.isnan(scores["nsdr"]) and math.isnan(scores["sdr"])
    fine = score_song(target_SCT, target_SCT, target_SCT.sum(0), 1000, names)
    assert scores.keys() == fine.keys()
    short = score_song(
        est_SCT, target_SCT, target_SCT.sum(0), 1000, names, metrics=["nsdr"]
    )
    assert list(short) == ["nsdr", "nsdr_a", "nsdr_b"]


def test_shapes_of_songs_that_do_not_fit_are_refused():
    wave = noise(2, 2, 9)
    with pytest.raises(ValueError, match=r"must be \[3, channel, sample\]"):
        score_song(wave, wave, wave[0], 1000, ["a", "b", "c"])
    with pytest.raises(ValueError, match="sample rate must be positive"):
        score_song(wave, wave, wave[0], 0, ["a", "b"])


def test_the_median_over_songs_is_in_the_summary():
    table = ResultTable()
    for number, value in enumerate([1.0, 2.0, 9.0]):
        table.add(str(number), sdr=value)
    assert table.summary()["metrics"]["sdr"]["median"] == 2.0
