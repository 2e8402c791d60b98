"""Batches of a stream on the device: gathered into pinned memory, copied beside the computation, mirrored there."""

from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gankern.data.loader import BatchStream

SLOTS = 3  # a batch that is gathered, one on its way, one that the device may still read


class _Slot:
    """Pinned buffers, buffers of the device, and two events: the copy is done, the copy has been read."""

    def __init__(self, cuda: ModuleType | Any):
        self.host: dict[str, Tensor] = {}
        self.there: dict[str, Tensor] = {}
        self.copied, self.read = cuda.Event(), cuda.Event()


class DeviceFeed:
    """`images, labels = next(feed)`: the stream's next batch on `device`, uint8 [B, C, R, R] and float32, as tensors
    that nothing else writes to.

    On a GPU the host waits only for the copy of three batches before, and the mirroring is the GPU's. `cuda` is
    torch.cuda.
    """

    def __init__(self, stream: BatchStream, device: torch.device, cuda: ModuleType | Any = torch.cuda):
        self.stream, self.device, self.cuda = stream, device, cuda
        self.direct = device.type == "cpu" and cuda is torch.cuda
        if not self.direct:
            self.side = cuda.Stream(device)
            self.slots = [_Slot(cuda) for _ in range(SLOTS)]
        self._number = 0

    def __next__(self) -> tuple[Tensor, Tensor]:
        if self.direct:
            return next(self.stream)
        slot = self.slots[self._number % SLOTS]
        self._number += 1
        slot.copied.synchronize()  # before the host writes into its pinned buffers
        batch = self.stream.take(lambda shape: self._pinned(slot, "images", shape, torch.uint8))
        for name in ("images", "labels", "mirrored"):
            value = getattr(batch, name)
            host = self._pinned(slot, name, value.shape, value.dtype)
            if host is not value:
                np.copyto(host.numpy(), value.numpy())
        return self._send(slot)

    def _send(self, slot: _Slot) -> tuple[Tensor, Tensor]:
        main = self.cuda.current_stream(self.device)
        for name, host in slot.host.items():
            there = slot.there.get(name)
            if there is None or there.shape != host.shape:
                slot.there[name] = torch.empty_like(host, device=self.device)
                self.side.wait_stream(main)  # which may still use this memory
        self.side.wait_event(slot.read)
        with self.cuda.stream(self.side):
            for name, host in slot.host.items():
                slot.there[name].copy_(host, non_blocking=True)
            slot.copied.record(self.side)
        main.wait_event(slot.copied)
        images, labels, mirrored = (slot.there[name] for name in ("images", "labels", "mirrored"))
        out = torch.where(mirrored[:, None, None, None], images.flip(3), images), labels.clone()
        slot.read.record(main)
        return out

    def _pinned(self, slot: _Slot, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        held = slot.host.get(name)
        if held is None or held.shape != shape:
            held = slot.host[name] = torch.empty(shape, dtype=dtype, pin_memory=self.device.type == "cuda")
        return held
