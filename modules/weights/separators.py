"""Load a separator, whoever wrote it, with what its use needs: rate and names.

Nothing in a model's place is executed: settings and weights are read as data, and the
networks are those of `modules/models`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from modules.runtime.errors import ExportError, PretrainedError
from modules.weights.demucs import model_beside, read_bag
from modules.weights.export import CONFIG, WEIGHTS, load_exported, read_config
from modules.weights.hub import PREFIX, fetch
from modules.weights.layouts import PARTS, SETTINGS, read_weights
from modules.weights.networks import network_of
from modules.weights.pretrained import load_weights
from modules.weights.runs import load_tested, read_run, source_names

LISTS = (".yaml", ".yml", ".json")


class Loaded(NamedTuple):
    """A network in evaluation mode, its sampling rate in Hz and its sources' names.

    `tested` says how a run tested it: `shifts`, `seed`, `overlap`, `chunk_seconds`.
    """

    network: nn.Module
    sample_rate: int
    sources: list[str]
    tested: Mapping[str, Any] = {}


def load_separator(place: str | Path, sample_rate: int | None = None) -> Loaded:
    """Load a run, an exported folder, or published weights.

    Arguments
    ---------
    place : str | Path
        A run's folder (the weights that it tested), a folder that `export.py` wrote, a
        folder or file of one of `layouts.LAYOUTS`, or such a folder at huggingface.co,
        `hf:ORGANISATION/NAME[@REVISION]`.
    sample_rate : int | None
        For models that do not state theirs, in Hz.

    Raises
    ------
    ExportError, LoraError, PretrainedError
        The place holds none of these, or cannot be read; the message says why.
    """
    place = _local(place)
    rate: int | None
    sources, tested = None, {}
    if not place.exists():
        raise PretrainedError(f"model: {place} does not exist")
    # SpeechBrain's folders have files of the same names as ours.
    foreign = not (place / WEIGHTS).is_file() and any(
        list(place.glob(f"{part}.*")) for part in PARTS
    )
    if (place / CONFIG).is_file() and not foreign:
        network, rate = load_exported(place), read_config(place).get("sample_rate")
    elif (place / SETTINGS).is_file() and not foreign:
        run = read_run(place)
        network, rate, sources = load_tested(run), run.sample_rate, run.value("sources")
        tested = {name: run.value(name) for name in ("shifts", "seed", "overlap")}
        tested["chunk_seconds"] = run.value("eval_chunk_seconds")
    else:
        weights, files = read_weights(place)
        network, rate = network_of(weights, place, files[0])
        load_weights(network.eval(), weights, place)
    rate = getattr(network, "sample_rate", rate) or sample_rate
    if rate is None:
        raise ExportError(f"{place}: states no sample rate; give --sample_rate")
    if sample_rate not in (None, rate):
        raise ExportError(f"--sample_rate={sample_rate}: {place} works at {rate} Hz")
    if hasattr(network, "sources") or sources is None:
        sources = source_names(network, rate)
    return Loaded(network, rate, list(sources), tested)


def load_separators(
    place: str | Path, sample_rate: int | None = None
) -> tuple[list[Loaded], list[list[float]] | None]:
    """Load one model by `load_separator`, or all that a list of models names.

    The second result has a row for each model with its weight for each source; None is
    all alike.

    Lists are demucs' bags (a file, or a folder with one and its packages), and YAML or
    JSON of one's own with the same `models` and `weights`, whose models may be anything
    that `load_separator` takes; they lie relative to the list.
    """
    given, place = place, _local(place)
    bag = _bag_file(place)
    if bag is None:
        return [load_separator(place, sample_rate)], None

    def find(path: Path, name: str) -> Path:
        model = path.parent / Path(name).expanduser()
        return model if model.exists() else model_beside(path, name)

    # Only a list that was named may choose other files of this computer.
    is_named = bag == Path(given).expanduser()
    read = read_bag(bag, find if is_named else None)
    if read.segment_seconds:
        raise PretrainedError(f"{bag}: states a segment, which is not supported")
    return [load_separator(file, sample_rate) for file in read.files], read.weights_MS


def _local(place: str | Path) -> Path:
    is_remote = str(place).startswith(PREFIX)
    return fetch(str(place)) if is_remote else Path(place).expanduser()


def _bag_file(place: Path) -> Path | None:
    """Return the file that lists several models, if the place is or holds one."""
    if place.is_file():
        return place if place.suffix in LISTS else None
    lists = re.compile(rb"^models\s*:", re.MULTILINE).search
    found = [path for path in place.glob("*.yaml") if lists(path.read_bytes())]
    return found[0] if len(found) == 1 else None
