"""New LibriMix metadata: the published rules, the published order, an end in sight."""

import csv
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.librimix.__main__ import main
from data_prep.librimix.audio import RATE, read_parts
from data_prep.librimix.draw import (
    NOISE_LUFS,
    TALKER_LUFS,
    draw,
    draw_groups,
    draw_set,
    gains_for,
)
from data_prep.librimix.generate import generate
from data_prep.librimix.lists import Noise, Talk
from data_prep.librimix.manifests import prepare
from data_prep.librimix.metadata import read_metadata
from modules.audio.levels import loudness_db
from modules.data.manifest import read_manifest
from modules.runtime.errors import DataError
from tests import SHARED
from tests.data_prep.sums import assert_sums

CORPORA = SHARED / "corpora"


def talks_of(count, speakers):
    return [
        Talk(
            f"set/{k % speakers}/1/{k % speakers}-1-{k:04}.flac",
            50000 + k,
            str(k % speakers),
            "F",
        )
        for k in range(count)
    ]


def noises_of(count, longest=90000, augmented=False):
    lengths = np.linspace(40000, longest, count).astype(int)
    return [Noise(f"tr/{k}.wav", int(n), augmented) for k, n in enumerate(lengths)]


@pytest.mark.parametrize(
    ("name", "num_spks", "least"),
    [("train-clean-100", 2, 13900), ("test-clean", 2, 977), ("test-clean", 3, 611)],
)
def test_seed_72_draws_the_published_talkers_in_their_order(name, num_spks, least):
    """The original leaves a few mixtures out; all others must be just those."""
    metadata = CORPORA / "meta" / "librimix" / "metadata"
    if not metadata.is_dir():
        pytest.skip(f"{metadata} is absent: no published metadata to compare with")
    with open(metadata / "LibriSpeech" / f"{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    table = metadata / f"Libri{num_spks}Mix" / f"libri{num_spks}mix_{name}.csv"
    published = [mixture.name for mixture in read_metadata(table, num_spks)]
    names = [Path(row["origin_path"]).stem for row in rows]
    speakers = [row["speaker_ID"] for row in rows]
    drawn = [
        "_".join(names[index] for index in group)
        for group in draw_groups(speakers, num_spks, random.Random(72))
    ]
    there = set(published)
    kept = [mixture for mixture in drawn if mixture in there]
    assert len(kept) == least
    assert kept == published[:least]


@pytest.mark.parametrize("num_spks", [2, 3])
def test_training_uses_every_utterance_at_most_once_and_hundreds(num_spks):
    drafts = draw_set("train-x", talks_of(950, 40), noises_of(900), num_spks, seed=1)
    used = [talk.path for draft in drafts for talk in draft.talks]
    assert len(set(used)) == len(used)
    assert len(drafts) == {2: 400, 3: 300}[num_spks]
    for draft in drafts:
        assert len({talk.speaker for talk in draft.talks}) == num_spks
        assert all(
            low <= x <= high for x in draft.levels[:-1] for low, high in [TALKER_LUFS]
        )
        assert NOISE_LUFS[0] <= draft.levels[-1] <= NOISE_LUFS[1]


def test_levels_are_uniform():
    drafts = draw_set("train", talks_of(4000, 40), noises_of(2000), 2, seed=5)
    levels = np.array([draft.levels for draft in drafts])
    for column, (low, high) in zip(
        levels.T, [TALKER_LUFS] * 2 + [NOISE_LUFS], strict=True
    ):
        shares, _ = np.histogram(column, 4, (low, high))
        assert abs(shares / len(column) - 0.25).max() < 4 * np.sqrt(0.19 / len(column))


def test_dev_and_test_have_as_many_mixtures_as_asked_for_none_twice():
    for most in (250, 3000):
        drafts = draw_set("dev", talks_of(120, 30), noises_of(4000), 2, 72, most)
        assert len(drafts) == most // 100 * 100
        assert len({frozenset(draft.talks) for draft in drafts}) == len(drafts)
        assert len({draft.noise for draft in drafts}) == len(drafts)


def test_a_set_depends_on_its_seed_alone():
    arguments = ("dev", talks_of(60, 20), noises_of(50), 2)
    assert draw_set(*arguments, 72) == draw_set(*arguments, 72)
    assert draw_set(*arguments, 72) != draw_set(*arguments, 73)


def test_noises_are_longer_than_the_talkers_and_unused_where_they_can_be(caplog):
    talks = talks_of(210, 21)
    drafts = draw_set("train", talks, noises_of(2000), 2, seed=3)
    assert len({draft.noise for draft in drafts}) == 100
    for draft in drafts:
        assert draft.noise.length > max(talk.length for talk in draft.talks)
    assert not caplog.records
    drafts = draw_set("train", talks, noises_of(30, longest=45000), 2, seed=3)
    counts = [sum(d.noise == n for d in drafts) for n in noises_of(30, 45000)]
    assert max(counts) == 4 and min(counts) == 3
    assert "30 noises for 100 mixtures: each is used up to 4 times, 100" in caplog.text


def test_noises_at_other_speeds_are_for_when_the_others_do_not_suffice():
    noises = noises_of(150) + [
        n._replace(path="x" + n.path, augmented=True) for n in noises_of(150)
    ]
    noises.sort(key=lambda noise: noise.length)
    for talks, expected in ((200, False), (400, True)):
        drafts = draw_set("train", talks_of(talks, 20), noises, 2, seed=3)
        assert any(draft.noise.augmented for draft in drafts) == expected


def test_too_few_utterances_end_with_what_there_is(caplog):
    drafts = draw_set("dev", talks_of(5, 5), [], 2, seed=72)
    assert len(drafts) == 10  # all pairs of five
    assert "5 utterances give 10 mixtures, not 3000" in caplog.text
    assert drafts[0].noise is None and len(drafts[0].levels) == 2
    with pytest.raises(DataError, match="4 utterances of 1 speakers give no mixture"):
        draw_set("dev", talks_of(4, 1), [], 2, seed=72)


def waves_of(*amplitudes, seconds=3):
    rng = np.random.default_rng(4)
    return [
        a * rng.standard_normal(round(seconds * RATE) + k)
        for k, a in enumerate(amplitudes)
    ]


def test_gains_bring_each_part_to_its_level():
    waves = waves_of(0.02, 0.3, 0.001)
    gains = gains_for(waves, [-33, -30, -38])
    for wave_T, gain, level in zip(waves, gains, [-33, -30, -38], strict=True):
        assert loudness_db(gain * wave_T, RATE) == pytest.approx(level, abs=0.01)


def test_no_peak_is_above_the_rule():
    quiet_T = waves_of(0.001)[0]
    click_T = quiet_T.copy()
    click_T[1000] = 0.5  # too short to be loud
    one, other = gains_for([click_T, quiet_T], [-25, -33])
    assert np.abs(one * click_T + other * quiet_T).max() == pytest.approx(0.9)
    ratio_db = loudness_db(other * quiet_T, RATE) - loudness_db(one * click_T, RATE)
    alone = 0.9 / 0.5  # its own rule comes first
    assert one <= alone and ratio_db > -8
    loud = gains_for(waves_of(0.1, 0.1), [-10, -10])
    mixture_T = sum(
        g * w[: 3 * RATE] for g, w in zip(loud, waves_of(0.1, 0.1), strict=True)
    )
    assert np.abs(mixture_T).max() == pytest.approx(0.9)
    with pytest.raises(ValueError, match="part 2 of 2 is silent"):
        gains_for([quiet_T, 0 * quiet_T], [-25, -25])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Four talkers with two utterances of 3 s, one of them of 2 s; short noises."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    speakers = ["; a comment", "ID | SEX | SUBSET"]
    for name, kind in (
        ("train-clean-100", "tr"),
        ("dev-clean", "cv"),
        ("test-clean", "tt"),
    ):
        for talker in range(1, 5):
            speakers.append(f"{talker}   | {'FM'[talker % 2]} | {name}")
            for take in range(3):
                path = root / f"LibriSpeech/{name}/{talker}/7/{talker}-7-{take:04}.flac"
                path.parent.mkdir(parents=True, exist_ok=True)
                frames = 2 * RATE if take == 2 else 3 * RATE + 100 * talker + take
                soundfile.write(path, 0.1 * rng.standard_normal(frames), RATE)
        (root / "wham_noise" / kind).mkdir(parents=True)
        for seconds in (1, 4):
            path = root / "wham_noise" / kind / f"n{seconds}.wav"
            soundfile.write(path, 0.1 * rng.standard_normal((seconds * RATE, 2)), RATE)
    (root / "LibriSpeech" / "SPEAKERS.TXT").write_text("\n".join(speakers))
    return root


def test_drawn_metadata_generates_and_prepares(corpus, tmp_path):
    settings = {"librispeech": corpus, "wham_noise": corpus}
    out = draw(**settings, out=tmp_path / "md", workers=1)
    mixtures = read_metadata(out / "Libri2Mix" / "libri2mix_dev-clean.csv", 2)
    assert len(mixtures) == 6 * 2 * 2  # pairs of talkers, two utterances each
    with open(out / "LibriSpeech" / "train-clean-100.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and rows[0]["sex"] == "M" and int(rows[0]["length"]) == 48100
    with open(out / "Wham_noise" / "train.csv", newline="") as file:
        names = [row["noise_ID"] for row in csv.DictReader(file)]
    assert names == [
        "n1sp12.wav",
        "n1.wav",
        "n1sp08.wav",
        "n4sp12.wav",
        "n4.wav",
        "n4sp08.wav",
    ]
    for mixture in mixtures[:3]:
        waves = read_parts(corpus / "LibriSpeech", corpus / "wham_noise", mixture)
        gains = [part.gain for part in (*mixture.sources, mixture.noise)]
        levels = [loudness_db(g * w, RATE) for g, w in zip(gains, waves, strict=True)]
        for level, (low, high) in zip(
            levels, [TALKER_LUFS] * 2 + [NOISE_LUFS], strict=True
        ):
            assert low - 0.05 < level < high + 0.05
    root = generate(
        **settings,
        metadata=out,
        out=tmp_path,
        sample_rates=[8000],
        modes=["min"],
        workers=1,
    )
    for path in prepare(root, tmp_path / "manifests", task="mix_both").values():
        rows = read_manifest(path, 2, 8000)
        assert_sums(rows)


def test_workers_and_restarts_change_nothing(corpus, tmp_path, monkeypatch, caplog):
    settings = {
        "librispeech": corpus,
        "wham_noise": corpus,
        "sets": ["train-clean-100"],
    }
    one = draw(**settings, out=tmp_path / "one", workers=1)
    two = draw(**settings, out=tmp_path / "two", workers=2)
    name = "Libri2Mix/libri2mix_train-clean-100.csv"
    assert (one / name).read_bytes() == (two / name).read_bytes()
    assert not list(one.rglob(".*"))
    monkeypatch.setattr("data_prep.librimix.draw._measure", None)
    draw(**settings, out=one)  # nothing to do
    with pytest.raises(DataError, match="was begun with seed=72, now it is 73"):
        draw(**settings, out=one, seed=73)
    (one / name).write_text("\n".join((one / name).read_text().splitlines()[:-1]))
    with pytest.raises(DataError, match="holds other mixtures than this corpus gives"):
        draw(**settings, out=one)


def test_hidden_files_of_macos_are_no_audio(corpus, tmp_path):
    copy = shutil.copytree(corpus, tmp_path / "corpus")
    for folder in ("LibriSpeech/dev-clean/1/7", "wham_noise/cv"):
        for suffix in (".flac", ".wav"):
            (copy / folder / f"._a{suffix}").write_bytes(b"\0\5\x16\7")
    drawn = [
        draw(root, tmp_path / name, root, sets=["dev-clean"], most=2, workers=1)
        for name, root in (("plain", corpus), ("hidden", copy))
    ]
    table = "Libri2Mix/libri2mix_dev-clean.csv"
    assert (drawn[0] / table).read_text() == (drawn[1] / table).read_text()


def test_wrong_corpora_are_one_clear_line(corpus, tmp_path):
    for change, message in (
        ({"librispeech": tmp_path}, "holds none of train-clean-100, train-clean-360"),
        ({"sets": ["dev-other"]}, "dev-other: holds no SPEAKER/CHAPTER"),
        ({"wham_noise": tmp_path}, r"tr: holds no \*.wav of more than 0.5 s"),
        ({"num_spks": 5}, "8 utterances of 4 speakers give no mixture of 5"),
    ):
        settings = {"librispeech": corpus, "wham_noise": corpus, "workers": 1} | change
        with pytest.raises(DataError, match=message) as error:
            draw(**settings, out=tmp_path / "out")
        assert "\n" not in str(error.value)


def test_metadata_that_is_no_text_is_named(tmp_path):
    table = tmp_path / "libri2mix_dev-clean.csv"
    table.write_bytes(b"mixture_ID,source_1_path\xff")
    with pytest.raises(DataError, match="libri2mix_dev-clean.csv: is not UTF-8"):
        read_metadata(table, 2)


def test_command_line(corpus, tmp_path, capsys):
    arguments = [
        "draw",
        f"--librispeech={corpus}",
        "--sets",
        "dev-clean",
        "--workers=1",
    ]
    assert main([*arguments, f"--out={tmp_path}/md", "--most=5"]) == 0
    assert capsys.readouterr().out.strip() == f"{tmp_path}/md"
    assert main([*arguments, f"--out={tmp_path}/md"]) == 1
    assert "was begun with most=5" in capsys.readouterr().err
