"""Truths about chunked separation, with separators whose answer is known.

Shapes: B batch, S source, T sample.
"""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from modules.inference.chunks import separate_in_chunks


def noise(*shape: int, seed: int = 0) -> Tensor:
    samples = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(samples).float() * 0.1


def local(mix_BT: Tensor) -> Tensor:
    """Three sources, each a sample-wise function of the mixture."""
    return torch.stack([mix_BT, mix_BT.square() + 0.1, -0.5 * mix_BT], dim=1)


class Oracle:
    """Knows the sources, returns them in an order drawn anew for each example.

    The sources lie far apart in frequency, so the mixture of any excerpt can be taken
    apart by its spectrum: a real separator with a known answer.
    """

    def __init__(self, sources: int, seed: int = 0, leak: float = 0.0) -> None:
        self.sources, self.leak = sources, leak
        self.rng = np.random.default_rng(seed)
        self.orders: list[list[int]] = []

    def bands(self, mix_BT: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(mix_BT)
        bins = spectrum.shape[-1]
        est = []
        for s in range(self.sources):
            keep = torch.zeros(bins)
            keep[bins * s // self.sources : bins * (s + 1) // self.sources] = 1
            est.append(torch.fft.irfft(spectrum * keep, n=mix_BT.shape[-1]))
        return torch.stack(est, dim=1)

    def __call__(self, mix_BT: Tensor) -> Tensor:
        est_BST = self.bands(mix_BT) + self.leak * mix_BT.unsqueeze(1)
        for b in range(len(est_BST)):
            order = self.rng.permutation(self.sources).tolist()
            self.orders.append(order)
            est_BST[b] = est_BST[b, order]
        return est_BST


def tones(sources: int, samples: int, batch: int = 1) -> Tensor:
    """One tone in the middle of each band, with its own level; `[B, S, T]`."""
    t_T = torch.arange(samples)
    source_S1 = torch.arange(sources).unsqueeze(1)
    phase_ST = torch.pi * (source_S1 + 0.5) / sources * t_T
    target_ST = torch.sin(phase_ST) * 0.3 / (source_S1 + 1)
    return torch.stack([target_ST * (b + 1) for b in range(batch)])


@pytest.mark.parametrize("samples", [1, 7, 100])
def test_up_to_one_chunk_the_result_is_the_separators(samples):
    mix_BT = noise(2, samples)
    calls = []

    def spy(x_BT: Tensor) -> Tensor:
        calls.append(x_BT)
        return local(x_BT)

    est_BST = separate_in_chunks(spy, mix_BT, chunk=100, overlap=30)
    assert torch.equal(est_BST, local(mix_BT))
    assert len(calls) == 1 and torch.equal(calls[0], mix_BT)


@pytest.mark.parametrize("samples", [101, 170, 171, 1000, 1003])
@pytest.mark.parametrize("overlap", [1, 30, 50, 99])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_sample_wise_separator_gives_the_same_in_chunks(samples, overlap, batch_size):
    mix_BT = noise(2, samples)
    est_BST = separate_in_chunks(local, mix_BT, 100, overlap, batch_size)
    torch.testing.assert_close(est_BST, local(mix_BT), atol=0, rtol=0)


def test_a_separator_with_short_memory_differs_only_at_the_edges():
    kernel = noise(2, 1, 9, seed=1)

    def convolve(mix_BT: Tensor) -> Tensor:
        return functional.conv1d(mix_BT.unsqueeze(1), kernel, padding=4)

    mix_BT = noise(1, 4900)
    error_T = (separate_in_chunks(convolve, mix_BT, 500, 100) - convolve(mix_BT))[0]
    level = convolve(mix_BT).square().mean()
    assert error_T.square().mean() < 1e-3 * level
    inside = torch.ones(4900, dtype=torch.bool)
    for start in range(400, 4900, 400):  # 4 samples at each edge of a chunk
        inside[start : start + 4] = False
        inside[start + 96 : start + 100] = False
    assert error_T[:, inside].abs().max() < 1e-6


@pytest.mark.parametrize("sources", [1, 2, 3, 4])
@pytest.mark.parametrize("leak", [0.0, 0.2])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_streams_stay_together_when_the_separator_swaps(sources, leak, batch_size):
    """Each example of the batch is swapped on its own, in every chunk."""
    target_BST = tones(sources, 4100, batch=3)
    oracle = Oracle(sources, leak=leak)
    est_BST = separate_in_chunks(oracle, target_BST.sum(1), 1000, 250, batch_size)
    if sources > 1:
        assert len({tuple(order) for order in oracle.orders}) > 1
    for b in range(3):
        in_first_chunk = target_BST[b, oracle.orders[b]]
        wanted_ST = in_first_chunk + leak * in_first_chunk.sum(0)
        error = (est_BST[b] - wanted_ST).square().mean(-1)
        assert (error < 0.01 * in_first_chunk.square().mean(-1)).all()


def test_a_faint_copy_of_the_only_voice_does_not_win_the_stream():
    """One voice pauses over every overlap; the streams differ there only in level."""
    voice_T, other_T = noise(4000, seed=2), noise(4000, seed=3)
    for start in range(800, 4000, 800):
        other_T[start : start + 200] = 0
    rng = np.random.default_rng(0)
    position = iter(range(0, 4000, 800))

    def separator(mix_BT: Tensor) -> Tensor:
        part = slice(start := next(position), start + mix_BT.shape[-1])
        est_ST = torch.stack([voice_T[part], other_T[part] + 0.05 * voice_T[part]])
        return est_ST[rng.permutation(2)][None]

    mix_BT = (voice_T + other_T)[None, :3400]
    est_ST = separate_in_chunks(separator, mix_BT, 1000, 200)[0]
    streams = {int(est_ST[s].dot(voice_T[:3400]) > 30) for s in range(2)}
    assert streams == {0, 1}
    voice = est_ST[0] if est_ST[0].dot(voice_T[:3400]) > 30 else est_ST[1]
    torch.testing.assert_close(voice, voice_T[:3400], atol=1e-6, rtol=0)


def test_the_separator_sees_only_full_chunks_in_batches():
    shapes = []

    def spy(x_BT: Tensor) -> Tensor:
        shapes.append(tuple(x_BT.shape))
        return local(x_BT)

    separate_in_chunks(spy, noise(2, 1050), chunk=100, overlap=20, batch_size=5)
    assert shapes == [(10, 100), (10, 100), (6, 100)]


def test_gradients_reach_every_sample_once():
    mix_BT = noise(1, 350).requires_grad_()
    separate_in_chunks(local, mix_BT, 100, 30)[:, 0].sum().backward()
    torch.testing.assert_close(mix_BT.grad, torch.ones(1, 350))


@pytest.mark.parametrize(
    ("chunk", "overlap", "batch_size", "message"),
    [
        (100, 0, 1, "overlap=0 and chunk=100"),
        (100, 100, 1, "overlap=100 and chunk=100"),
        (100, 50, 0, "batch_size must be at least 1, got 0"),
    ],
)
def test_impossible_sizes_are_refused(chunk, overlap, batch_size, message):
    with pytest.raises(ValueError, match=message):
        separate_in_chunks(local, noise(1, 300), chunk, overlap, batch_size)


def test_a_separator_that_changes_the_length_is_refused():
    with pytest.raises(ValueError, match=r"\(1, 100\) to \[1, S, 100\]"):
        separate_in_chunks(lambda x: local(x)[..., :-1], noise(1, 300), 100, 50)
    with pytest.raises(ValueError, match="must be .B, T., got"):
        separate_in_chunks(local, noise(300), 100, 50)
