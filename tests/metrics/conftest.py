"""Images for the metrics' tests, and a watch on the size of tensors."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.fixture(autouse=True)
def one_thread():  # small tensors: threads that wait for each other cost more than they do
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_images():
    """make_images(n, resolution, channels=3, seed=0) -> uint8 NCHW with structure at every scale."""

    def make(n: int, resolution: int, channels: int = 3, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        total = np.zeros((n, channels, resolution, resolution))
        size = 4
        while size <= resolution:
            coarse = rng.standard_normal((n, channels, size, size))
            total += coarse.repeat(resolution // size, 2).repeat(resolution // size, 3)
            size *= 2
        return (128 + 25 * total).clip(0, 255).astype(np.uint8)

    return make


class LargestTensor(TorchDispatchMode):
    """Records the bytes of the largest storage behind what any operation returns."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor):
                self.bytes = max(self.bytes, value.untyped_storage().nbytes())
        return out


@pytest.fixture
def largest_tensor():
    return LargestTensor()
