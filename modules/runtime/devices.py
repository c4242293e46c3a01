"""The device of a run."""

import torch

from modules.runtime.errors import HparamsError


def check_device(name: str) -> None:
    """Raise an HparamsError unless this machine has the device."""
    try:
        device = torch.device(name)
        module = torch.get_device_module(device)
        count = module.device_count() if module.is_available() else 0
    except RuntimeError:
        raise HparamsError(
            f"--device={name}: no such device; expected cpu, cuda or cuda:NUMBER"
        ) from None
    if (device.index or 0) >= count:
        there = f"only {count}" if count else "none"
        raise HparamsError(
            f"--device={name}: this machine has {there} of type {device.type}; leave "
            "--device out to take the best there is, or start fewer processes"
        )
