"""YAML files, their variants and overrides."""

import inspect
import re
from pathlib import Path

import pytest
import torch
import yaml
from speechbrain.utils.run_opts import RunOptions

import train
from modules.runtime.errors import DataError, HparamsError
from recipes.config.load import Layers, load, load_hparams, parse_command_line
from recipes.config.names import KEYS
from recipes.config.nodes import parameters
from tests import ROOT

# Extended by others, not run themselves.
BASES = {"base.yaml", "speech.yaml", "music.yaml"}
DATASETS = sorted((ROOT / "hparams" / "datasets").glob("*.yaml"))
FILES = sorted(p for p in (ROOT / "hparams").glob("*.yaml") if p.name not in BASES)
# Others are several runs after each other and have none of a run's settings.
RECIPES = [path for path in FILES if "htdemucs_clean" not in path.name]
SPEECH = [
    ROOT / "hparams" / f"{name}_tiny.yaml" for name in ("mossformer2", "sepformer")
]
TOY = str(ROOT / "tests" / "toy.yaml")


def is_read(name: str) -> bool:
    """Whether a recipe, another key or SpeechBrain reads a key."""
    folders = [ROOT / "recipes", ROOT / "benchmarks"]
    files = [ROOT / "train.py", *(p for f in folders for p in f.glob("*.py"))]
    code = "".join(path.read_text() for path in files)
    yamls = [p for f in ("hparams", "benchmarks") for p in (ROOT / f).rglob("*.yaml")]
    texts = [path.read_text() for path in yamls]
    by_name = rf"\bconfig\.{name}\b|hparams(\[|\.get\()\"{name}\""
    return (
        bool(re.search(by_name, code))
        or any(f"<{name}>" in text for text in texts)
        or name in RunOptions.__dataclass_fields__
        or name == "__set_seed"
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recipe_names_only_keys_that_something_reads(path, tmp_path):
    """A key that nobody reads is a setting that does nothing."""
    _, resolved = load_hparams(
        path, {"data_folder": "/none", "output_folder": str(tmp_path)}
    )
    for key in yaml.compose(resolved).value:
        assert is_read(key[0].value), f"{path.name}: nothing reads {key[0].value}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
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
    for recipe in SPEECH:
        arguments = [str(recipe), f"--dataset={path.stem}", "--data_folder=/none"]
        _, _, overrides = parse_command_line([*arguments, "--sample_rate=16000"])
        hparams, resolved = load_hparams(recipe, overrides)
        prepare = hparams["prepare"]
        assert f"{prepare.func.__module__}.".startswith(f"{module}.")
        inspect.signature(prepare.func).bind(**prepare.keywords)
        assert prepare.keywords["sample_rate"] == 16000
        assert {"num_spks", "mode"} <= prepare.keywords.keys()  # else it ignores them
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
    assert other["prepare"].func.__module__ == "data_prep.wsj0mix.manifests"


def test_a_wrong_data_set_lists_those_that_there_are():
    for arguments in (["--dataset=libri"], ["--dataset"], ["--dataset", "../speech"]):
        with pytest.raises(HparamsError) as error:
            parse_command_line([str(SPEECH[0]), *arguments])
        message = str(error.value)
        names = ", ".join(block.stem for block in DATASETS)
        assert f"expected one of {names}" in message
    with pytest.raises(HparamsError, match="unknown key --task"):
        parse_command_line([TOY, "--task=mix_both"])  # not a key of WSJ0-mix
    with pytest.raises(HparamsError, match="unknown key --dataset"):
        parse_command_line([str(ROOT / "hparams" / "htdemucs.yaml"), "--dataset=wham"])


def test_a_data_set_may_lie_outside_the_packages(tmp_path):
    """A block and a `prepare` of its own: no line of the project names them."""
    block = tmp_path / "mine" / "party.yaml"
    block.parent.mkdir()
    text = (ROOT / "hparams" / "datasets" / "wham.yaml").read_text()
    block.write_text(text.replace("data_prep.wham.prepare", "tests.toy.prepare"))
    arguments = [str(SPEECH[0]), "--data_folder=/none", f"--dataset={block}"]
    run = load([*arguments, "--task=noisy"])
    assert run.hparams["output_folder"] == "results/mossformer2_tiny_party/1234"
    assert run.hparams["dataset"] == "party" and "dataset: party" in run.resolved
    assert run.hparams["prepare"].keywords["task"] == "noisy"
    with pytest.raises(HparamsError, match=r"task=\[1\]: expected text or null"):
        load([*arguments, "--task=[1]"])
    with pytest.raises(HparamsError, match="none.yaml: no such YAML file"):
        load([*arguments[:2], "--dataset=none.yaml"])


def test_a_command_line_is_read_at_once(monkeypatch):
    read = []
    original = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path, **k: read.append(path) or original(path, **k)
    )
    run = load([TOY, "--data_folder=/none", "--precision=bf16", "--lr=1"])
    assert run.run_opts.precision == "bf16" and run.hparams["lr"] == 1
    assert yaml.safe_load(run.resolved.split("\n__set_seed")[0])["seed"] == 1234
    names = [path.name for path in read if path.suffix == ".yaml"]
    assert sorted(names) == ["base.yaml", "speech.yaml", "toy.yaml", "wsj0mix.yaml"]


def test_a_mapping_without_a_tag_changes_only_the_arguments_it_names(tmp_path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("lr_scheduler: {patience: 7}\nnote: {a: 1}\n")
    two.write_text(
        f"extends: [{TOY}, one.yaml]\nnote: {{b: 2}}\n"
        "lr_scheduler: {factor: 0.25, lr_min: 0.5}\n"
        "checkpointer: {recoverables: {more: !ref <separator>}}\n"
        "augmentation: !new:modules.data.augmentation.Augmentation\n"
    )
    three = tmp_path / "three.yaml"
    three.write_text("extends: two.yaml\naugmentation: {pitch_semitones: 6}\n")
    four = tmp_path / "four.yaml"
    four.write_text(
        "extends: three.yaml\naugmentation: !new:builtins.dict\n    wrapped: !below\n"
    )
    hparams, _ = load_hparams(three, {"data_folder": "/none"})
    scheduler = hparams["lr_scheduler"]
    assert (scheduler.patience, scheduler.factor) == (7, 0.25)
    assert (scheduler.lr_min, scheduler.dont_halve_until_epoch) == (0.5, 85)
    assert hparams["note"] == {"b": 2}, "a plain mapping is replaced"
    names = ["separator", "lr_scheduler", "epoch_counter", "select", "more"]
    assert list(hparams["checkpointer"].recoverables) == names
    assert hparams["augmentation"].pitch_semitones == 6
    wrapping = load_hparams(four, {"data_folder": "/none"})[0]["augmentation"]
    assert wrapping == {"wrapped": hparams["augmentation"]}


def test_resolved_text_gives_the_same_run(tmp_path):
    overrides = {"data_folder": "/none", "output_folder": str(tmp_path), "lr": 0.25}
    _, resolved = load_hparams(TOY, overrides)
    written = tmp_path / "hyperparams.yaml"
    written.write_text(resolved)
    again, _ = load_hparams(written)
    assert again["optimizer"].keywords["lr"] == 0.25
    assert again["modules"]["separator"] is again["separator"]
    assert again["checkpointer"].recoverables["separator"] is again["separator"]


@pytest.mark.parametrize("length", [44, 56, 59])
def test_a_key_with_a_space_is_read_wherever_a_long_line_breaks(tmp_path, length):
    variant = tmp_path / "variant.yaml"
    variant.write_text(f"extends: {TOY}\nnotes: null\n")
    given = f"{{a: [{{two words: [{'x' * length}, y], last word: z}}]}}"
    value = {"a": [{"two words": ["x" * length, "y"], "last word": "z"}]}
    _, hparams, text = load(
        [str(variant), f"--data_folder={tmp_path}", f"--notes={given}"]
    )
    assert hparams["notes"] == value
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(text)
    assert load([str(resolved)])[1]["notes"] == value


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
        (["--data_folder=/caf\udce9"], "is not UTF-8, as YAML must be; give a link"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(arguments, message):
    with pytest.raises(HparamsError) as error:
        parse_command_line([TOY, *arguments])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def loaded(*arguments: str, file: str | Path = TOY) -> dict:
    _, _, overrides = parse_command_line([str(file), "--data_folder=/x", *arguments])
    return load_hparams(file, overrides)[0]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--lr_scheduler={patiense: 3}", "lr_scheduler[patiense]: did you mean patien"),
        ("--lr_scheduler={PATIENCE: 3}", "did you mean patience? (there are: dont_ha"),
        ("--lr_scheduler={q: 3}", "unknown key lr_scheduler[q] (there are: dont_h"),
        (
            "--optimizer={beta: 3}",
            "optimizer[beta]: did you mean betas? (there are",
        ),
        ("--patience=3", "did you mean --lr_scheduler='{patience: ...}'?"),
        ("--zzz=3", "unknown key --zzz: --help lists the keys"),
        ("--separator={layers: 3}", "unknown key separator[layers] "),
    ],
)
def test_a_misspelt_key_names_its_neighbour_nested_or_not(argument, message):
    with pytest.raises(HparamsError) as error:
        loaded(argument)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (
            "--batch_size=two",
            "batch_size=two: expected an integer above 0, as its default",
        ),
        ("--batch_size=True", "batch_size=True: expected an integer"),
        ("--batch_size=0", "batch_size=0: must be above 0"),
        ("--batch_size=null", "batch_size=null: expected an integer"),
        ("--N_epochs=1.5", "N_epochs=1.5: expected an integer above 0, as its default"),
        ("--lr=abc", "lr=abc: expected a number above 0, as its default 0.00"),
        ("--lr=[1]", "lr=[1]: expected a number"),
        (
            "--segment_seconds=True",
            "=True: expected a number from 0.01 to 3600 or null, as its default 4",
        ),
        ("--dynamic_mixing=no", "dynamic_mixing=no: expected True or False"),
        ("--segment_seconds=x", "=x: expected a number from 0.01 to 3600 or null"),
        ("--speed_changes=[95, x]", "x]: expected a list (each item an integer from 1"),
        ("--select={threshold: a}", "select[threshold]=a: expected a number below"),
        ("--optimizer=5", "optimizer=5: expected keys and values"),
        ("--seed=-1", "seed=-1: must be from 0 to 4294967295"),
        ("--select=null", "select=null: expected keys and values"),
        ("--mode=[1]", "mode=[1]: expected text, as its default min"),
        ("--lr=.inf", "must be finite"),
        ("--ema_decay=1", "ema_decay=1: must be from 0 to below 1"),
        ("--dropout=much", "=much: expected a number from 0 to below 1, as its"),
        ("--separator={num_sources: two}", "separator[num_sources]=two: expected an"),
        ("--optimizer={betas: 1}", "optimizer[betas]=1: expected a list"),
        ("--optimizer={betas: [0.9, 1]}", "[0.9, 1]: must be from 0 to below 1"),
        ("--optimizer={eps: .nan}", "optimizer[eps]=.nan: must be finite"),
        ("--optimizer={amsgrad: 2}", "optimizer[amsgrad]=2: expected True or False"),
        ("--lr_scheduler={patience: -1}", "lr_scheduler[patience]=-1: must be 0 or"),
        ("--lr_scheduler={factor: 2}", "[factor]=2: must be above 0 and at most 1"),
        ("--lr_scheduler={lr_min: a}", "lr_scheduler[lr_min]=a: expected a number"),
    ],
)
def test_a_value_of_the_wrong_type_says_what_is_expected(argument, expected):
    with pytest.raises(HparamsError) as error:
        loaded(argument)
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("--lr=1", "lr", 1),
        ("--lr=1e-4", "lr", 1e-4),
        ("--clip_grad_norm=0.5", "clip_grad_norm", 0.5),
        ("--threshold=-20", "threshold", -20),
        ("--segment_seconds=null", "segment_seconds", None),
        ("--speed_changes=null", "speed_changes", None),
        ("--examples_per_epoch=7", "examples_per_epoch", 7),
        ("--experiment_name=007", "experiment_name", "007"),
        ("--base_folder_dm=5", "base_folder_dm", "5"),
        ("--lr_scheduler=null", "lr_scheduler", None),
        ("--base_folder_dm=~/talkers", "base_folder_dm", f"{Path.home()}/talkers"),
    ],
)
def test_a_value_of_the_right_type_arrives(argument, key, value):
    arrived = loaded(argument)[key]
    assert arrived == value and type(arrived) is type(value)


RECIPE = {name: ROOT / "hparams" / f"{name}.yaml" for name in (
    "mossformer2", "mossformer2_tiny", "sepformer", "htdemucs", "htdemucs_lora",
)}  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "arguments", "node", "expected"),
    [
        ("htdemucs", ["--channels=8"], "separator", {"channels": 8}),
        ("htdemucs", ["--nfft", "2048"], "separator", {"nfft": 2048}),
        ("htdemucs", ["--depth=3", "--t_layers=1"], "separator", {"t_layers": 1}),
        ("htdemucs", ["--t_heads=4", "--separator={depth: 3}"], "separator",
         {"t_heads": 4, "depth": 3}),
        ("htdemucs", ["--augmentation={pitch_semitones: 6, scale: null}"],
         "augmentation", {"pitch_semitones": 6, "scale": None}),
        ("htdemucs", ["--lr_scheduler={epochs: [3]}"], "lr_scheduler", {"epochs": [3]}),
        ("mossformer2", ["--layers=2"], "layers", 2),
        ("mossformer2", ["--kernel_size=32"], "separator", {"kernel_size": 32}),
        ("mossformer2", ["--separator={mask_mode: map}"], "separator",
         {"mask_mode": "map"}),
        ("mossformer2", ["--optimizer={betas: [0.9, 0.98]}"], "optimizer",
         {"betas": [0.9, 0.98]}),
        ("mossformer2", ["--lr_scheduler={lr_min: 0.1}"], "lr_scheduler",
         {"lr_min": 0.1}),
        ("sepformer", ["--channels=64", "--heads=4"], "separator",
         {"channels": 64, "heads": 4}),
    ],
)  # fmt: skip
def test_every_argument_can_be_given(recipe, arguments, node, expected):
    """Also those that the YAML does not name; they reach the run's settings."""
    path = RECIPE[recipe]
    _, _, overrides = parse_command_line([str(path), "--data_folder=/x", *arguments])
    tree = Layers(path, {}).overridden(overrides)
    found = tree[node]
    assert (dict(found) | expected if isinstance(expected, dict) else expected) == found


def test_arguments_reach_their_objects():
    arguments = ["--optimizer={betas: [0.9, 0.98]}", "--heads=4", "--dual_layers=1"]
    size = ["--channels=16", "--ffn_channels=8", "--intra_layers=1"]
    given = [*arguments, *size, "--inter_layers=1", "--encoder_channels=8"]
    hparams = loaded(*given, file=RECIPE["sepformer"])
    assert hparams["optimizer"].keywords["betas"] == [0.9, 0.98]
    assert hparams["separator"].config["heads"] == 4
    assert list(hparams["optimizer"](hparams["separator"].parameters()).param_groups)
    for argument, message in (
        ("--separator={head: 4}", r"separator\[head\]: did you mean heads\?"),
        ("--heads=0", r"separator\[heads\]=0: must be 1 or more"),
        ("--heads=x", r"separator\[heads\]=x: expected an integer of 1 or more"),
        ("--heads", "--heads needs one value"),
        ("--augmentation={scale: 1}", "unknown key --augmentation"),
    ):
        with pytest.raises(HparamsError, match=message):
            loaded(argument, file=RECIPE["sepformer"])


@pytest.mark.parametrize(
    ("recipe", "argument", "message"),
    [
        ("htdemucs", "--gradient_clip=1", "did you mean clip_grad_norm?"),
        (
            "mossformer2",
            "--lr_decay_factor=1",
            "mean --lr_scheduler='{factor: ",
        ),
        ("htdemucs", "--lr_decay_factor=1", "mean --lr_scheduler='{factor: "),
        ("mossformer2", "--save_audio=1", "did you mean n_audio_to_save?"),
        ("htdemucs", "--segment=11", "did you mean segment_seconds?"),
        ("mossformer2", "--encoder_kernel_size=8", "'{kernel_size: ...}'?"),
        ("mossformer2", "--num_mossformer_layer=8", "did you mean layers?"),
        ("mossformer2", "--encoder_embedding_dim=8", "did you mean channels?"),
        ("mossformer2", "--separator={encoder_embedding_dim: 8}", "encoder_channels?"),
        (
            "htdemucs",
            "--enable_checkpointing=1",
            "mean activation_checkpointing",
        ),
        ("htdemucs", "--trunc_ratio=0.5", "--lr_scheduler='{quantile: ...}'?"),
        ("htdemucs_lora", "--min_rank=2", "did you mean lora_min_rank?"),
        ("htdemucs_lora", "--mixed_precision=1", "did you mean --precision=bf16?"),
        (
            "htdemucs",
            "--precision=float16",
            "float16: this is --precision=fp16",
        ),
        ("htdemucs", "--truncation=l1_trunc", "l1_trunc: this is --truncation=ccom"),
        ("htdemucs", "--loss=l1", "unknown key --loss: did you mean truncation?"),
        (
            "mossformer2",
            "--dataset=wsj0-2mix",
            "is --dataset=wsj0mix --num_spks=2",
        ),
        ("htdemucs", "--hop_length=512", "--separator='{nfft: 4*hop_length}'?"),
        ("mossformer2", "--hop_length=8", "'{kernel_size: 2*hop_length}'?"),
        ("htdemucs", "--config=x.yaml", "YAML file comes first, without --config"),
        (
            "mossformer2",
            "--patience=1",
            "did you mean --lr_scheduler='{patience: ...}'?",
        ),
        ("mossformer2", "--betas=1", "did you mean --optimizer='{betas: ...}'?"),
        ("mossformer2", "--wavelet=1", "unknown key --wavelet: --help lists the keys"),
    ],
)
def test_the_names_of_other_tools_are_known(recipe, argument, message):
    with pytest.raises(HparamsError) as error:
        loaded(argument, file=RECIPE[recipe])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_other_names_lead_to_exists():
    """In at least one recipe, so that no message names what is not there."""
    names: set[str] = set()
    for path in RECIPES:
        tree = Layers(path, {}).whole
        names |= {*tree, *RunOptions.__dataclass_fields__}
        for key in ("separator", "lr_scheduler"):
            names |= {f"{key}.{name}" for name in parameters(tree[key])[0]}
    for here, others in KEYS.items():
        assert {name.partition("=")[0] for name in here.split()} & names, others
        assert not names & {*others.split()}, f"{others}: a name here too"


def test_the_launcher_of_old_is_told_of_torchrun():
    """It puts the rank before all that was typed."""
    for argument in ("--local-rank=0", "--local_rank=1"):
        with pytest.raises(HparamsError, match="replaced by torchrun: torchrun --stan"):
            parse_command_line([argument, TOY, "--data_folder=/x"])
    with pytest.raises(HparamsError, match="first argument .*without --config"):
        parse_command_line(["--config", TOY])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"extends: a.yaml", "a.yaml: extends a.yaml, which builds on a.yaml"),
        (b"extends: [b.yaml]", "b.yaml: extends a.yaml, which builds on b.yaml"),
        (b"extends: {b.yaml: 1}", "a.yaml: extends must name a file, or a list of"),
        (b"extends: [1]", "a.yaml: extends must name a file"),
        (b"extends: none.yaml", "none.yaml: no such YAML file"),
        ("lr: 1 # k\u00fchl".encode("latin-1"), "a.yaml: is not in UTF-8 (byte 9)"),
        ("lr: 1".encode("utf-16"), "a.yaml: is not in UTF-8 (byte 0)"),
        (b"\xff\xfe", "a.yaml: is not in UTF-8"),
        (b"lr: [", "a.yaml: not valid YAML"),
        (b"- 1", "a.yaml: must be a mapping"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_at_once(tmp_path, text, message):
    (tmp_path / "a.yaml").write_bytes(text)
    (tmp_path / "b.yaml").write_text("extends: a.yaml")
    for arguments in ([], ["--help"]):
        with pytest.raises(HparamsError) as error:
            train.main([str(tmp_path / "a.yaml"), *arguments])
        assert message in str(error.value) and "\n" not in str(error.value)


def test_a_yaml_that_is_no_recipe_is_one_line(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 1")
    with pytest.raises(HparamsError, match="^the YAML file has no key experiment_name"):
        train.main([str(tmp_path / "a.yaml")])


def test_two_files_may_build_on_one(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbflr: 1")  # as some editors save it
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text(f"extends: c.yaml\n{name}: 1")
    (tmp_path / "d.yaml").write_text("extends: [a.yaml, b.yaml]")
    assert dict(Layers(tmp_path / "d.yaml", {}).whole) == {"lr": 1, "a": 1, "b": 1}


def test_types_come_from_every_file_that_is_extended(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {TOY}\nlr: 1\nmine: null\nseparator: !new:a.B\n")
    assert load_hparams(TOY, {"data_folder": "x", "lr": 0.5})[0]["lr"] == 0.5
    for value in ("null", "3", "text"):  # null says nothing of its type
        with pytest.raises(ImportError):  # a.B: the value itself was taken
            loaded(f"--mine={value}", "--lr=0.5", file=path)
    with pytest.raises(HparamsError, match="mine.yaml|gives separator no keys"):
        loaded("--separator={size: 3}", file=path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_a_recipe_says_of_null_is_true(path):
    """A key whose comment explains null takes it."""

    def read(path):
        parents = re.findall(r"(?m)^extends: (.*)", text := path.read_text())
        names = parents[0].strip("[]").split(", ") if parents else []
        return [text, *(t for name in names for t in read(path.parent / name))]

    texts = read(path)
    lines = [line for text in texts for line in text.splitlines() if "null:" in line]
    names = {line.split(":")[0] for line in lines if line[0].isalpha()}
    is_speech = any("recipes.speech" in text for text in texts)
    assert "examples_per_epoch" in names
    assert ({"segment_seconds", "speed_changes"} <= names) == is_speech
    known = names & Layers(path, {}).whole.keys()
    tree = Layers(path, {}).overridden(dict.fromkeys(known))
    assert {tree[name] for name in known} == {None}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_number_with_a_fraction_by_nature_takes_one(path):
    names = {
        *("lr", "clip_grad_norm", "ema_decay", "loss_upper_lim", "threshold"),
        *("segment_seconds", "stride_seconds", "segment_seconds", "eval_chunk_seconds"),
        *("lora_alpha", "lora_dropout", "overlap"),
    }
    known = names & Layers(path, {}).whole.keys()
    tree = Layers(path, {}).overridden(dict.fromkeys(known, 0.5))
    assert {tree[name] for name in known} == {0.5}


def test_a_device_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(HparamsError, match="--device=cuda: this machine has none of"):
        parse_command_line([TOY, "--device=cuda"])
    with pytest.raises(HparamsError, match="--device=gpu: no such device; expected"):
        parse_command_line([TOY, "--device=gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert parse_command_line([TOY, "--device=cuda:0"])[1].device == "cuda:0"
    with pytest.raises(HparamsError, match="cuda:3: this machine has only 1 of"):
        parse_command_line([TOY, "--device=cuda:3"])


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
    numbered = [TOY, "--data_folder=/data/set #1", "--mode='max' # not min"]
    given = parse_command_line(numbered)[2]
    assert given == {"data_folder": "/data/set #1", "mode": "max"}


def test_a_file_that_is_not_run_by_itself_is_one_line():
    with pytest.raises(HparamsError, match='speech.yaml: .*"separator" is not valid'):
        load_hparams("hparams/speech.yaml", {"data_folder": "x"})


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
    overrides = {
        "data_folder": "/none",
        "output_folder": str(tmp_path),
        "separator": {"kernel_size": 3},
    }
    with pytest.raises(HparamsError, match="kernel_size=3 must be") as error:
        load_hparams(path, overrides)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
