"""What a network must compute: as the references in ../shared do, as torch does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from tests import SHARED


def golden(name: str) -> Path:
    """The path of a file, or a test that skips and says so."""
    path = SHARED / "goldens" / name
    if not path.exists():
        pytest.skip(f"golden file not found at {path}")
    return path


def read_golden(
    name: str, key: str = "config"
) -> tuple[dict, dict[str, Tensor], dict[str, Tensor]]:
    """The configuration, the weights and all tensors of a file."""
    with safe_open(str(golden(f"{name}.safetensors")), "pt") as file:
        config = json.loads(file.metadata()[key])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    weights = {
        key.removeprefix("weight/"): value
        for key, value in tensors.items()
        if key.startswith("weight/")
    }
    return config, weights, tensors


def close(value: Tensor, truth: Tensor, share: float = 1e-5) -> None:
    """Compare within a share of the peak."""
    assert value.shape == truth.shape
    assert (value - truth).abs().max() <= share * truth.abs().max()


def check_keys(model: nn.Module, name: str, size: str) -> None:
    """Compare names, shapes and counts with those of a published size."""
    truth = json.loads(golden(f"{name}_keys.json").read_text())[size]
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == truth["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == truth["parameters"]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == truth["trainable"]


def check_large_product(product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Compare a matrix that goes to oneDNN, and its gradients, with the plain one."""
    torch.manual_seed(0)
    given = torch.randn(2, 120, 300), torch.randn(400, 300), torch.randn(400)
    found = []
    for apply in (product, functional.linear):
        leaves = [value.clone().requires_grad_() for value in given]
        y_BLC = apply(*leaves)
        y_BLC.square().sum().backward()
        found.append([y_BLC, *(leaf.grad for leaf in leaves)])
    for ours, plain in zip(*found, strict=True):
        assert (ours - plain).norm() < 1e-5 * plain.norm()
    assert found[0][0].shape == (2, 120, 400)


def check_gradients(
    model: nn.Module, tensors: dict[str, Tensor], expected: int
) -> None:
    """Compare the loss and the gradients of a file's gradient case."""
    model.zero_grad()
    (mixture,) = (v for key, v in tensors.items() if key.startswith("grad/mixture_B"))
    (target,) = (v for key, v in tensors.items() if key.startswith("grad/target_BS"))
    loss = (model(mixture) - target).abs().mean()
    loss.backward()
    torch.testing.assert_close(loss, tensors["grad/loss_l1_mean"], rtol=1e-5, atol=0)
    parameters = dict(model.named_parameters())
    compared = 0
    for key, truth in tensors.items():
        name = key.removeprefix("grad/")
        if key.startswith("grad/") and name in parameters:
            compared += 1
            close(parameters[name].grad, truth, 1e-4)
    assert compared == expected
