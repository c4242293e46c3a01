"""A run becomes a folder that others use: SpeechBrain, onnxruntime, readers of its card.

Every recipe `hparams/*_tiny.yaml` without adapters is published, so that a new network
is tested as soon as it has one.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from torch import Tensor, nn

from modules.runtime.errors import ExportError, HparamsError
from modules.weights.checkpointer import AtomicCheckpointer
from modules.weights.ema import EMA, mean_state
from modules.weights.export import export, load_exported
from modules.weights.hub import HUB_FILES, code_of
from modules.weights.onnx_file import ONNX_FILE, write_onnx
from modules.weights.runs import load_tested, read_run
from modules.weights.separators import load_separator
from recipes.config.load import load_hparams
from recipes.separator import Separator
from tests import ROOT
from tests.toy import same_weights

TINY = [p for p in (ROOT / "hparams").glob("*_tiny.yaml") if "_lora" not in p.name]
NAMES = sorted(path.stem.removesuffix("_tiny") for path in TINY)
#: Smaller still, where a recipe has the key.
SMALLEST = {"layers": 1, "channels": 16, "segment_seconds": 0.5}
SCORES = {"si_snr_i": {"mean": 9.876, "standard_error": 0.5, "median": 9, "count": 7}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a run of every tiny recipe, as a test leaves it."""
    root = tmp_path_factory.mktemp("runs")
    return {name: make_run(root / name, name) for name in NAMES}


def make_run(folder: Path, name: str) -> Path:
    path = ROOT / "hparams" / f"{name}_tiny.yaml"
    text = "".join(p.read_text() for p in (ROOT / "hparams").rglob("*.yaml"))
    keys = set(re.findall(r"!ref <(\w+)>", text)) & set(SMALLEST)
    given = {"data_folder": "/secret/place/songs", "output_folder": str(folder)}
    given |= {key: SMALLEST[key] for key in keys if key in keys_of(path)}
    hparams, resolved = load_hparams(path, given)
    command = f"# command: python train.py {name}.yaml --data_folder=/secret/place/x\n"
    (folder / "hyperparams.yaml").write_text(f"{command}# versions: torch 2\n{resolved}")
    (folder / "test_results.json").write_text(json.dumps({"metrics": SCORES}))
    network = {"separator": hparams["separator"].eval()}
    checkpointer = AtomicCheckpointer(folder / "save", network)
    checkpointer.save_checkpoint(meta={"epoch": 3, "si_snr": 1.0, "nsdr": 1.0})
    return folder


def keys_of(path: Path) -> set[str]:
    from recipes.config.load import Layers

    return set(Layers(path, {}).whole)


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
        network, rate, _ = load_separator(place / "model")
        is_stock = name == "sepformer"  # which has no chunks
        seconds = 2 if is_stock else 20 if rate < 20000 else 3
        wave_CT = noise(place, network, rate, seconds)
        separator = Separator(network, rate, ["any"])
        parts = Separator.load(place / "model", device="cpu").separate(wave_CT, rate)
        del separator
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
        assert len(list((tmp_path / name).glob("source_*.wav"))) == est.shape[-1]


@pytest.mark.parametrize("name", NAMES)
def test_onnx_is_the_network_at_any_length(runs, tmp_path, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run = read_run(runs[name])
    network, out = load_tested(run), tmp_path / "out"
    rate = getattr(network, "sample_rate", run.sample_rate)
    check = write_onnx(out / ONNX_FILE, network, {"sample_rate": rate})
    assert check.difference < 1e-4 and min(check.seconds) > 0
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
