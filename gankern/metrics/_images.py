"""What every metric does to its input: check that it is a set of uint8 NCHW images, and bring a batch to a device."""

import warnings
from typing import TypeAlias

import numpy as np
import torch

Images: TypeAlias = np.ndarray | torch.Tensor  # a numpy.memmap is an ndarray

CHUNK_VALUES = 2**22  # values of one working tensor: images are taken in pieces of this size, whatever comes in


def default_device(device: torch.device | str | None) -> torch.device:
    """`device`, or the GPU where there is one."""
    return torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")


def check_images(name: str, images: Images) -> tuple[int, int, int, int]:
    """Return (N, C, H, W) of a uint8 NCHW array or tensor; ValueError naming `name` for anything else."""
    if not isinstance(images, np.ndarray | torch.Tensor):
        raise ValueError(f"{name}: expected a uint8 NCHW array or tensor, got {type(images).__name__}")
    if images.dtype not in (np.uint8, torch.uint8) or images.ndim != 4:
        raise ValueError(f"{name}: expected uint8 NCHW, got {images.dtype} of shape {tuple(images.shape)}")
    return tuple(images.shape)


def to_device(images: Images, device: torch.device) -> torch.Tensor:
    """The images as a tensor on `device`, still uint8."""
    if isinstance(images, np.ndarray):
        with warnings.catch_warnings():  # a read-only memmap: nothing here writes to its input
            warnings.filterwarnings("ignore", message=".*not writable", category=UserWarning)
            images = torch.from_numpy(np.ascontiguousarray(images))
    return images.to(device)


def chunk_length(channels: int, height: int, width: int) -> int:
    """How many images make one working tensor."""
    return max(1, CHUNK_VALUES // (channels * height * width))
