"""YAML files, their variants and overrides."""

import importlib.util
import inspect
from pathlib import Path

import pytest
import yaml
from speechbrain.utils.run_opts import RunOptions

from data_prep.manifest import DataError
from recipes.hparams import HparamsError, load_hparams, parse_command_line

ROOT = Path(__file__).parents[2]
# Extended by others, not run themselves.
BASES = {"base.yaml", "speech.yaml", "music.yaml"}
DATASETS = sorted((ROOT / "hparams" / "datasets").glob("*.yaml"))
RECIPES = sorted(p for p in (ROOT / "hparams").glob("*.yaml") if p.name not in BASES)
SPEECH = [
    ROOT / "hparams" / f"{name}_tiny.yaml" for name in ("mossformer2", "sepformer")
]
TOY = str(ROOT / "tests" / "toy.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_names_only_keys_that_something_reads(path, tmp_path):
    """A key that nobody reads is a setting that does nothing."""
    _, resolved = load_hparams(
        path, {"data_folder": "/none", "output_folder": str(tmp_path)}
    )
    texts = [p.read_text() for p in (ROOT / "hparams").rglob("*.yaml")]
    code = "".join(
        p.read_text() for p in [ROOT / "train.py", *(ROOT / "recipes").glob("*.py")]
    )
    for key in yaml.compose(resolved).value:
        name = key[0].value
        used = (
            any(f"<{name}>" in text for text in texts)
            or f"hparams.{name}" in code
            or f'hparams["{name}"]' in code
            or name in RunOptions.__dataclass_fields__
            or name == "__set_seed"
        )
        assert used, f"{path.name}: nothing reads {name}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_says_its_published_score(path):
    header = path.read_text().split("extends")[0]
    assert "Published" in header or "measured" in header.lower() or "demo" in header


@pytest.mark.parametrize("path", DATASETS, ids=lambda path: path.stem)
def test_every_data_set_says_its_published_score(path):
    header = path.read_text().split("prepare")[0]
    assert "Published" in header or "Not a published" in header
    assert "measured" in header.lower()


@pytest.mark.parametrize("path", DATASETS, ids=lambda path: path.stem)
def test_every_data_set_can_be_chosen_for_both_models(path, tmp_path):
    """Its keys can be overridden, all are read, and its `prepare` takes them."""
    module = f"data_prep.{path.stem}"
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not there yet")
    for recipe in SPEECH:
        arguments = [str(recipe), f"--dataset={path.stem}", "--data_folder=/none"]
        _, _, overrides = parse_command_line([*arguments, "--sample_rate=16000"])
        hparams, resolved = load_hparams(recipe, overrides)
        prepare = hparams["prepare"]
        assert prepare.func.__module__ == module
        inspect.signature(prepare.func).bind(**prepare.keywords)
        assert prepare.keywords["sample_rate"] == 16000
        if path.stem != "synthetic":  # that one makes what is not there
            with pytest.raises(DataError, match="/none"):
                prepare(save_folder=tmp_path)
        written = tmp_path / "hyperparams.yaml"
        written.write_text(resolved)
        again, _ = load_hparams(written)
        assert again["prepare"].keywords == prepare.keywords
    text = path.read_text()
    for key in yaml.compose(text).value:
        name = key[0].value
        speech = (ROOT / "hparams" / "speech.yaml").read_text()
        base = (ROOT / "hparams" / "base.yaml").read_text()
        known = f"\n{name}:" in speech + base or f"<{name}>" in text
        assert known or name == "prepare", f"{path.name}: nothing reads {name}"


def test_a_data_set_brings_its_settings_and_a_folder_of_its_own(tmp_path):
    def load(recipe, *arguments):
        path = str(ROOT / "hparams" / f"{recipe}.yaml")
        _, _, overrides = parse_command_line([path, "--data_folder=/none", *arguments])
        return load_hparams(path, overrides)[0]

    plain = load("mossformer2_tiny")
    assert (
        plain["dynamic_mixing"]
        and plain["output_folder"] == "results/mossformer2_tiny/1234"
    )
    libri = load("mossformer2_tiny", "--dataset", "librimix", "--task=mix_both")
    assert (
        not libri["dynamic_mixing"] and libri["prepare"].keywords["task"] == "mix_both"
    )
    assert libri["output_folder"] == "results/mossformer2_tiny_librimix/1234"
    mixed = load("sepformer_tiny", "--dynamic_mixing=True", "--dataset=librimix")
    assert mixed["dynamic_mixing"]
    assert mixed["segment_seconds"] == 2  # a variant comes after the data set
    demo = load("demo")
    assert demo["base_folder_dm"] == "/none/wsj0/si_tr_s"
    assert load("demo", "--dataset=librimix")["base_folder_dm"] is None


def test_a_variant_may_choose_the_data_set(tmp_path):
    variant = tmp_path / "mine.yaml"
    variant.write_text(f"extends: {SPEECH[1]}\ndataset: librimix\ntask: mix_both\n")
    hparams, _ = load_hparams(variant, {"data_folder": "/none"})
    assert hparams["prepare"].keywords["task"] == "mix_both"
    other, _ = load_hparams(variant, {"data_folder": "/none", "dataset": "wsj0mix"})
    assert other["prepare"].func.__module__ == "data_prep.wsj0mix"


def test_a_wrong_data_set_lists_those_that_there_are():
    for arguments in (["--dataset=libri"], ["--dataset"], ["--dataset", "../speech"]):
        with pytest.raises(HparamsError) as error:
            parse_command_line([str(SPEECH[0]), *arguments])
        message = str(error.value)
        assert "expected one of librimix, synthetic, wham, whamr, wsj0mix" in message
    with pytest.raises(HparamsError, match="unknown key --task: did you mean"):
        parse_command_line([TOY, "--task=mix_both"])  # not a key of WSJ0-mix
    with pytest.raises(HparamsError, match="unknown key --dataset"):
        parse_command_line([str(ROOT / "hparams" / "htdemucs.yaml"), "--dataset=wham"])


def test_resolved_text_gives_the_same_run(tmp_path):
    overrides = {"data_folder": "/none", "output_folder": str(tmp_path), "lr": 0.25}
    _, resolved = load_hparams(TOY, overrides)
    written = tmp_path / "hyperparams.yaml"
    written.write_text(resolved)
    again, _ = load_hparams(written)
    assert again["optimizer"].keywords["lr"] == 0.25
    assert again["modules"]["separator"] is again["separator"]
    assert again["checkpointer"].recoverables["separator"] is again["separator"]


def test_a_variant_changes_only_what_it_names(tmp_path):
    settings = {"data_folder": "/none", "output_folder": str(tmp_path)}
    (tmp_path / "variant.yaml").write_text(f"extends: {TOY}\nlr: 0.5\n")
    changed, _ = load_hparams(tmp_path / "variant.yaml", settings)
    plain, _ = load_hparams(TOY, settings)
    differing = {
        key
        for key, value in plain.items()
        if isinstance(value, int | float | str | list | None) and changed[key] != value
    }
    assert differing == {"lr"}
    assert changed["optimizer"].keywords["lr"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_spk=3"], "unknown key --num_spk: did you mean num_spks?"),
        (["--precison=bf16"], "did you mean precision?"),
        (["--dev=cpu"], "unknown key --dev"),  # argparse would take the abbreviation
        (["--lr"], "--lr needs one value"),
        (["lr=1"], "unexpected argument 'lr=1'"),
        (["--precision=fp8"], "precision"),
        (["--optimizer_step_limit=few"], "optimizer_step_limit"),
        (["--select=[1"], "not valid YAML"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(arguments, message):
    with pytest.raises(HparamsError) as error:
        parse_command_line([TOY, *arguments])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_misspelt_nested_key_names_its_neighbour():
    _, _, overrides = parse_command_line([TOY, "--lr_scheduler={patiense: 3}"])
    with pytest.raises(HparamsError, match=r"lr_scheduler\[patiense\].*patience"):
        load_hparams(TOY, overrides)


def test_a_nested_override_leaves_its_neighbours(tmp_path):
    _, _, overrides = parse_command_line(
        [
            TOY,
            "--data_folder=/none",
            f"--output_folder={tmp_path}",
            "--lr_scheduler={patience: 7}",
        ]
    )
    scheduler = load_hparams(TOY, overrides)[0]["lr_scheduler"]
    assert (scheduler.patience, scheduler.factor) == (7, 0.5)


def test_values_with_equals_signs_and_spaces_survive(tmp_path):
    folder = tmp_path / "a=b c"
    _, _, overrides = parse_command_line([TOY, f"--data_folder={folder}", "--lr", "1"])
    assert overrides == {"data_folder": str(folder), "lr": 1}


def test_a_placeholder_asks_for_its_value():
    with pytest.raises(HparamsError, match="--data_folder=..."):
        load_hparams(TOY)


def test_a_missing_file_is_named():
    with pytest.raises(HparamsError, match="hparams/none.yaml: no such YAML file"):
        parse_command_line(["hparams/none.yaml"])
    with pytest.raises(HparamsError, match="first argument must be a YAML file"):
        parse_command_line(["--data_folder=x"])


def test_run_options_are_typed():
    _, run_opts, overrides = parse_command_line(
        [TOY, "--optimizer_step_limit=3", "--debug", "--precision", "bf16"]
    )
    assert run_opts.optimizer_step_limit == 3
    assert run_opts.debug and run_opts.precision == "bf16"
    assert overrides == {}


def test_a_value_that_its_object_refuses_is_one_line(tmp_path):
    path = ROOT / "hparams" / "mossformer2_tiny.yaml"
    overrides = {"data_folder": "/none", "output_folder": str(tmp_path), "layers": 0}
    with pytest.raises(HparamsError, match="layers=0 must be") as error:
        load_hparams(path, overrides)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
