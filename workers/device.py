"""The device that a worker on this machine computes on."""

import platform


def device_name() -> str:
    """The GPU's name as its maker gives it, or `cpu` and the machine's architecture."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu {platform.machine()}"


def gpu_count() -> int:
    """GPUs of this machine."""
    import torch

    return torch.cuda.device_count()
