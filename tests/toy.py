"""Separators and corpora small enough to train inside a test.

Legend: B batch, S source, C channel, T sample.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

RATE = 8000


class ToySeparator(nn.Module):
    """One convolution a source on the mixture; linear up to the dropout."""

    def __init__(self, num_sources: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.conv = nn.Conv1d(1, num_sources, 9, padding=4)

    def forward(self, mixture_BT: Tensor) -> Tensor:
        """[B, T] to [B, S, T]."""
        return self.conv(self.dropout(mixture_BT[:, None]))


class ToyStems(nn.Module):
    """`ToySeparator` for stereo songs, with what `apply_model` asks of a model."""

    segment = 0.5

    def __init__(self, sources: Sequence[str], sample_rate: int) -> None:
        super().__init__()
        self.sources, self.sample_rate = list(sources), sample_rate
        self.mono = ToySeparator(len(self.sources))

    def forward(self, mixture_BCT: Tensor) -> Tensor:
        """[B, C, T] to [B, S, C, T]."""
        est_XST = self.mono(mixture_BCT.flatten(0, 1))
        return est_XST.unflatten(0, mixture_BCT.shape[:2]).transpose(1, 2)


def prepare(
    data_folder: str,
    save_folder: str,
    num_spks: int,
    sample_rate: int,
    mode: str,
    task: str | None,
) -> dict[str, str]:
    """The `prepare` of a data set that exists only in a YAML block."""
    return {}


def make_songs(
    folder: Path, tracks: int = 4, seconds: float = 1.5, rate: int = RATE
) -> Path:
    """Folders with `low.wav` and `high.wav`; in the last track they are exchanged."""
    rng = np.random.default_rng(0)
    for index in range(tracks):
        noise = 0.1 * rng.standard_normal((round(seconds * rate), 2))
        low = np.apply_along_axis(np.convolve, 0, noise, np.ones(8) / 3, mode="same")
        high = np.diff(0.1 * rng.standard_normal((len(noise) + 1, 2)), axis=0)
        if index == tracks - 1:
            low, high = high, low
        for name, wave in (("low", low), ("high", high)):
            path = folder / f"track{index}" / f"{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, wave, rate, subtype="FLOAT")
    return folder


def make_corpus(
    folder: Path,
    counts: tuple[int, int, int] = (6, 3, 2),
    num_spks: int = 2,
    seconds: float = 0.5,
    rate: int = RATE,
) -> Path:
    """A wsj0-mix tree of filtered noise; returns what `--data_folder` takes.

    Names follow WSJ0-mix, so that dynamic mixing can tell the speakers.
    """
    rng = np.random.default_rng(0)
    root = folder / f"{num_spks}speakers"
    for split, count in zip(("tr", "cv", "tt"), counts, strict=True):
        base = root / f"wav{rate // 1000}k" / "min" / split
        for index in range(count):
            letters = "efg" if split == "tt" else "abc"  # the test has its own talkers
            names = [f"{s}{index:02d}a01{index:02d}" for s in letters[:num_spks]]
            id_ = "_".join(f"{name}_{s}.5" for s, name in enumerate(names))
            frames = round(seconds * rate) + 16 * index
            sources = 0.1 * rng.standard_normal((num_spks, frames))
            sources[0] = np.convolve(sources[0], np.ones(8) / 3, mode="same")
            parts = dict(zip(("s1", "s2", "s3"), sources, strict=False))
            for name, wave in {"mix": sources.sum(0), **parts}.items():
                path = base / name / f"{id_}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, wave, rate, subtype="FLOAT")
    return root


def weights_of(folder: Path) -> dict[str, Tensor]:
    """The separator's weights in the newest checkpoint of a run's folder."""
    newest = sorted((folder / "save").glob("CKPT+*"))[-1]
    return torch.load(newest / "separator.ckpt", weights_only=True)


def same_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two state dicts hold the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
