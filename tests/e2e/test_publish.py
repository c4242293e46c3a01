"""A run becomes a folder for others: SpeechBrain, onnxruntime, readers of its card.

Every recipe `hparams/*_tiny.yaml` without adapters is published, so that a new network
is tested as soon as it has one.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from torch import Tensor, nn

from modules.runtime.errors import ExportError, HparamsError
from modules.weights.checkpointer import AtomicCheckpointer
from modules.weights.ema import mean_state
from modules.weights.export import export, load_exported
from modules.weights.onnx_file import ONNX_FILE, write_onnx
from modules.weights.runs import load_tested, read_run
from modules.weights.separators import load_separator
from modules.weights.speechbrain_files import HUB_FILES, code_of
from recipes.config.load import load_hparams
from recipes.separator import Separator
from tests import ROOT
from tests.toy import same_weights

# These train the network of another file.
OF_OTHERS = ("htdemucs_lora_tiny.yaml", "htdemucs_clean_tiny.yaml")
TINY = [
    path
    for path in (ROOT / "hparams").glob("*_tiny.yaml")
    if path.name not in OF_OTHERS
]
NAMES = sorted(path.stem.removesuffix("_tiny") for path in TINY)
#: Smaller still, and exported as ONNX: its time grows with the number of layers.
SMALLER = {
    "mossformer2": "layers: 1",
    "sepformer": "layers: 1",
    "htdemucs": "nfft: 512\nsegment_seconds: 0.5\nseparator: {depth: 3}",
}
SCORES = {"si_snr_i": {"mean": 9.876, "standard_error": 0.5, "median": 9, "count": 7}}
SCORES["stoi"] = {**SCORES["si_snr_i"], "mean": 0.876}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a run of every tiny recipe, as a test leaves it."""
    root = tmp_path_factory.mktemp("runs")
    return {name: make_run(root / name, name) for name in NAMES}


def make_run(folder: Path, name: str) -> Path:
    path = folder.parent / f"{name}.yaml"
    recipe = ROOT / "hparams" / f"{name}_tiny.yaml"
    path.write_text(f"extends: {recipe}\n{SMALLER.get(name, '')}\n")
    given = {"data_folder": "/secret/place/songs", "output_folder": str(folder)}
    hparams, resolved = load_hparams(path, given)
    notes = f"# command: python train.py /secret/{name}.yaml --data_folder=/secret/x\n"
    notes += "# versions: torch 2\n"
    (folder / "hyperparams.yaml").write_text(notes + resolved)
    results = {"metrics": SCORES, "units": {"stoi": ""}}
    (folder / "test_results.json").write_text(json.dumps(results))
    network = {"separator": hparams["separator"].eval()}
    checkpointer = AtomicCheckpointer(folder / "save", network)
    checkpointer.save_checkpoint(meta={"epoch": 3, "si_snr": 1.0, "nsdr": 1.0})
    return folder


def noise(folder: Path, network: nn.Module, rate: int, seconds: float) -> Tensor:
    """A recording, [C, T]; the file is `mixture.wav`."""
    channels = getattr(network, "audio_channels", 1)
    swell = 0.6 + 0.4 * torch.sin(torch.arange(round(seconds * rate)) / rate * 9)
    wave_CT = 0.1 * swell * torch.randn(channels, round(seconds * rate))
    soundfile.write(folder / "mixture.wav", wave_CT.T.numpy(), rate, subtype="FLOAT")
    return wave_CT


def examples(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)


LOAD_ALL = """
import pathlib, runpy, sys, torch
try:
    import modules
except ModuleNotFoundError:
    pass
else:
    sys.exit("the repository can be imported")
for place in map(pathlib.Path, sys.argv[1:]):
    import os
    os.chdir(place)
    variables = runpy.run_path("example.py")
    torch.save(variables["estimates"], "estimates.pt")
"""


@torch.no_grad()
def test_a_stock_speechbrain_loads_and_separates_as_we_do(runs, tmp_path):
    """All in one program: each folder must get the code of its own network."""
    expected = {}
    for name, run in runs.items():
        place = tmp_path / name
        export(run, place / "model", hub=True)
        network, rate, *_ = load_separator(place / "model")
        is_stock = name == "sepformer"  # which has no chunks
        seconds = 2 if is_stock else 20 if rate < 20000 else 3
        wave_CT = noise(place, network, rate, seconds)
        parts = Separator.load(place / "model", device="cpu").separate(wave_CT, rate)
        est_SCT = torch.stack(list(parts.values()))
        if is_stock:  # and divides by the peak
            est_SCT = est_SCT / est_SCT.abs().amax(-1, keepdim=True)
        mono = est_SCT.shape[1] == 1
        expected[name] = (est_SCT[:, 0] if mono else est_SCT).movedim(0, -1)
        (_, example) = examples(place / "model")
        (place / "example.py").write_text(example)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    places = [str(tmp_path / name) for name in runs]
    subprocess.run(
        [sys.executable, "-c", LOAD_ALL, *places],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    for name, est in expected.items():
        found = torch.load(tmp_path / name / "estimates.pt")
        assert found.shape == est.shape, name
        assert (found - est).abs().max() < 1e-5 * est.abs().max(), name
        written = {path.name for path in (tmp_path / name).glob("*.wav")}
        assert len(written - {"mixture.wav"}) == est.shape[-1]


@pytest.mark.parametrize("name", sorted(SMALLER))
def test_onnx_is_the_network_at_any_length(runs, tmp_path, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run = read_run(runs[name])
    network, out = load_tested(run), tmp_path / "out"
    rate = getattr(network, "sample_rate", run.sample_rate)
    assert write_onnx(out / ONNX_FILE, network, {"sample_rate": rate}) < 1e-4
    session = onnxruntime.InferenceSession(out / ONNX_FILE)
    assert session.get_modelmeta().custom_metadata_map["sample_rate"] == str(rate)
    for seconds in (0.01, 0.777, 3.2):
        mixture = noise(out, network, rate, seconds)
        mixture = mixture[None] if hasattr(network, "segment") else mixture
        with torch.no_grad():
            expected = network(mixture)
        found = session.run(None, {"mixture": mixture.numpy()})[0]
        difference = (torch.from_numpy(found) - expected).abs().max()
        assert difference < 1e-4 * expected.abs().max(), seconds


class SingularValues(nn.Module):
    """ONNX has no singular values."""

    def forward(self, mixture_BT: Tensor) -> Tensor:
        return torch.linalg.svdvals(mixture_BT[..., None])[..., None] * mixture_BT


class FixedLength(nn.Module):
    """A loop over the samples fixes their number."""

    def forward(self, mixture_BT: Tensor) -> Tensor:
        return sum(mixture_BT[:, None] / n for n in range(1, mixture_BT.shape[-1], 999))


class RoundsDown(nn.Module):
    """In ONNX a division of integers rounds towards zero, in Python down."""

    def forward(self, mixture_BT: Tensor) -> Tensor:
        return mixture_BT[:, None] * torch.ones(-(-mixture_BT.shape[-1] // 64)).sum()


@pytest.mark.parametrize(
    "kind, message",
    [
        (SingularValues, "SingularValues: the operation aten._linalg_svd has no form"),
        (FixedLength, "FixedLength: cannot be exported: .*static shape of 8560"),
        (RoundsDown, "RoundsDown: at .* samples the file differs from torch by"),
    ],
)
def test_what_is_in_the_way_of_onnx_is_named(tmp_path, kind, message):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ExportError, match=message) as error:
        write_onnx(tmp_path / ONNX_FILE, kind().eval(), {"sample_rate": 8000})
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_missing_packages_of_onnx_are_named(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match="pip install onnx onnxscript onnxruntime"):
        export(runs["mossformer2"], tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()


def test_the_card_says_what_the_hub_asks(runs, tmp_path):
    export(runs["mossformer2"], tmp_path / "mine", license="cc-by-4.0")
    text = (tmp_path / "mine" / "README.md").read_text()
    card = ModelCard.load(tmp_path / "mine" / "README.md").data
    assert (card.license, card.datasets) == ("cc-by-4.0", ["wsj0mix"])
    assert card.pipeline_tag == "audio-to-audio" and "MossFormer2" in card.tags
    result, _ = card.eval_results
    assert (result.metric_type, result.metric_value) == ("si_snr_i", 9.876)
    assert result.metric_args == {"standard_error": 0.5, "count": 7}
    assert "/secret" not in text
    for part in (
        "`python train.py .../mossformer2.yaml --data_folder=.../x`", "| epoch 3 |",
        "| seed | 1234 |", "| torch 2 |", "| si_snr_i | dB | 9.88 | 0.50 | 7 |",
        "| stoi |  | 0.88 | 0.50 | 7 |",
        "above 4000 Hz is lost", "always gives 2 voices",
    ):  # fmt: skip
        assert part in text, part
    (example,) = examples(tmp_path / "mine")
    noise(tmp_path, nn.Identity(), 8000, 0.5)
    code = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    subprocess.run([sys.executable, "-c", example], check=True, **code)
    assert soundfile.info(tmp_path / "s1.wav").frames == 4000


@pytest.mark.parametrize("name", ["mossformer2", "htdemucs"])
def test_the_card_shows_how_to_run_onnx(runs, tmp_path, monkeypatch, name):
    """The session is a stand-in, which takes what the network takes."""
    network = load_tested(read_run(runs[name]))
    monkeypatch.setattr("modules.weights.export.write_onnx", lambda *given: 0.0)
    export(runs[name], tmp_path / "mine", onnx=True)
    example = examples(tmp_path / "mine")[-1]
    wave_CT = noise(tmp_path, network, 8000, 0.5)

    class Session:
        def __init__(self, path):
            assert path == "mine/model.onnx"

        def run(self, names, given):
            assert given["mixture"].shape[-2:] == wave_CT.shape
            with torch.no_grad():
                return [network(torch.from_numpy(given["mixture"])).numpy()]

    stand_in = types.SimpleNamespace(InferenceSession=Session)
    monkeypatch.setitem(sys.modules, "onnxruntime", stand_in)
    monkeypatch.chdir(tmp_path)
    variables: dict = {}
    exec(example, variables)
    assert variables["estimates"].shape[-1] == wave_CT.shape[-1]


def test_a_second_export_leaves_no_other_weights_behind(runs, tmp_path):
    out, run = tmp_path / "out", runs["mossformer2"]
    export(run, out, hub=True)
    assert (out / "custom.py").is_file()
    export(run, out, int8=True)
    kept = {path.name for path in out.iterdir()}
    assert kept == {"model.safetensors", "config.json", "README.md"}
    for given in ({"int8": True}, {"lora": "separate"}):
        with pytest.raises(ExportError, match="--hub --.* leave .* out"):
            export(run, out, hub=True, **given)


def test_the_code_for_speechbrain_is_one_file(runs):
    for run in runs.values():
        kind = read_run(run).kind
        code = code_of(kind)
        assert Path(sys.modules[kind.__module__].__file__).read_text() in code
        assert not re.search(r"^(from|import) (modules|recipes)", code, re.MULTILINE)
    assert {"custom.py", "separator.ckpt", "encoder.ckpt"} <= set(HUB_FILES)


@pytest.fixture
def epochs(tmp_path: Path) -> Path:
    """A run of three epochs, the first of them the best, that tested a mean."""
    run = make_run(tmp_path / "run", "sepformer")
    text = (run / "hyperparams.yaml").read_text()
    network = load_tested(run)
    for epoch in (4, 5):
        for weight in network.parameters():
            weight.data.normal_()
        saved = AtomicCheckpointer(run / "save", {"separator": network})
        saved.save_checkpoint(meta={"epoch": epoch, "si_snr": 0.5})
    mean = text.replace("average_last: 0", "average_last: 2")
    (run / "hyperparams.yaml").write_text(mean)
    return run


def test_the_mean_of_the_last_epochs_is_exported(epochs, tmp_path):
    paths = sorted((epochs / "save").iterdir())
    states = [torch.load(p / "separator.ckpt") for p in paths]
    model = load_exported(export(epochs, tmp_path / "out"))
    assert same_weights(model.state_dict(), mean_state(states[-2:]))
    assert "the mean of the last 2 epochs" in (tmp_path / "out/README.md").read_text()
    shutil.rmtree(paths[-1])
    shutil.rmtree(paths[-2])
    with pytest.raises(HparamsError, match=r"average_last=2 needs .* \(here: 1\)"):
        export(epochs, tmp_path / "out")


def test_a_checkpoint_is_exported_without_the_scores_of_another(epochs, tmp_path):
    text = (epochs / "hyperparams.yaml").read_text()
    plain = text.replace("average_last: 2", "average_last: 0")
    (epochs / "hyperparams.yaml").write_text(plain)
    best, *others = sorted((epochs / "save").iterdir())
    for path, has_scores in ((best, True), (others[0], False)):
        out = export(path, tmp_path / path.name)
        weights = load_exported(out).state_dict()
        assert same_weights(weights, torch.load(path / "separator.ckpt"))
        card = (out / "README.md").read_text()
        assert ("## Scores" in card) == has_scores
        assert f"| epoch {3 if has_scores else 4} |" in card
    lonely = tmp_path / best.name.replace("CKPT", "LONELY")
    shutil.copytree(best, lonely)
    with pytest.raises(ExportError, match="LONELY.*give the folder of a run"):
        export(lonely, tmp_path / "out")
