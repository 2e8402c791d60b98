"""A convolution and what stands around it, as data: cuDNN compiles it into one kernel; tests run it step by step.

    conv(x, w)            correlation of x [N, C, H, W] with w [K, C, R, S]
    input_grad(dy, w)     its gradient with respect to x
    mul, add              with broadcasting
    lrelu(x), lrelu_grad(dy, y)      leaky ReLU; dy by its slope at y > 0 or not
    sum(t)                over every dimension in which the result is 1 wide

Values between the steps are float32 and never leave the kernel. Graphs are equal where their plans can be.
"""

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spec:
    """How an operand lies in memory, seen in four dimensions."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


def spec(t: Tensor) -> Spec:
    """Of t; [N, C] counts as [N, C, 1, 1], [C] as [1, C, 1, 1], a number as [1, 1, 1, 1]."""
    if t.ndim == 4:
        return Spec(tuple(t.shape), t.stride(), t.dtype)
    n, c = (1, *t.shape) if t.ndim == 1 else t.shape if t.ndim == 2 else (1, 1)
    row = t.stride(0) if t.ndim == 2 else c
    return Spec((n, c, 1, 1), (row, 1, row, row), t.dtype)


@dataclass(frozen=True)
class Step:
    """value `name` of this shape = kind(of ...), with the numbers that the kind takes."""

    kind: str
    of: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True)
class Graph:
    """What it is called in tables, its operands by name, the steps, and the results: (name, value, how it lies)."""

    name: str
    inputs: tuple[tuple[str, Spec], ...]
    steps: tuple[Step, ...]
    outputs: tuple[tuple[str, str, Spec], ...]

    @property
    def key(self) -> str:
        """The same for equal graphs, in every process."""
        return hashlib.sha256(repr((self.inputs, self.steps, self.outputs)).encode()).hexdigest()[:32]

    @property
    def io_dtype(self) -> torch.dtype:
        """Of the images and weights."""
        return self.inputs[0][1].dtype

    @property
    def flops(self) -> int:
        """Two a multiply-add of its convolutions."""
        shapes = {name: s.shape for name, s in self.inputs}
        total = 0
        for step in self.steps:
            if step.kind in ("conv", "input_grad"):
                k, c, r, s = shapes[step.of[1]]
                n, _, h, w = step.shape if step.kind == "conv" else shapes[step.of[0]]
                total += 2 * n * h * w * k * c * r * s
        return total


@dataclass
class Draft:
    """A graph being written; its methods return the names of values."""

    name: str
    inputs: dict[str, Spec] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    outputs: list[tuple[str, str, Spec]] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def input(self, name: str, s: Spec) -> str:
        self.inputs[name], self.shapes[name] = s, s.shape
        return name

    def _step(self, kind: str, of: tuple[str, ...], shape: tuple[int, ...], numbers: tuple[float, ...] = ()) -> str:
        name = f"v{len(self.steps)}"
        self.steps.append(Step(kind, of, name, tuple(shape), numbers))
        self.shapes[name] = tuple(shape)
        return name

    def conv(self, x: str, w: str, stride: int, padding: int) -> str:
        (n, _, *size), (k, _, *taps) = self.shapes[x], self.shapes[w]
        out = ((v + 2 * padding - t) // stride + 1 for v, t in zip(size, taps, strict=True))
        return self._step("conv", (x, w), (n, k, *out), (stride, padding))

    def input_grad(self, dy: str, w: str, size: tuple[int, ...], stride: int, padding: int) -> str:
        shape = (self.shapes[dy][0], self.shapes[w][1], *size)
        return self._step("input_grad", (dy, w), shape, (stride, padding))

    def _broadcast(self, kind: str, a: str, b: str) -> str:
        return self._step(kind, (a, b), torch.broadcast_shapes(self.shapes[a], self.shapes[b]))

    def mul(self, a: str, b: str) -> str:
        return self._broadcast("mul", a, b)

    def add(self, a: str, b: str) -> str:
        return self._broadcast("add", a, b)

    def lrelu(self, x: str, alpha: float) -> str:
        return self._step("lrelu", (x,), self.shapes[x], (alpha,))

    def lrelu_grad(self, dy: str, y: str, alpha: float) -> str:
        return self._step("lrelu_grad", (dy, y), self.shapes[dy], (alpha,))

    def sum(self, t: str, shape: tuple[int, ...]) -> str:
        return self._step("sum", (t,), shape)

    def output(self, value: str, name: str, s: Spec) -> None:
        """Write `value` as the result `name`."""
        if s.shape != self.shapes[value]:
            raise ValueError(f"{self.name}: {name} has shape {s.shape}, its value {self.shapes[value]}")
        self.outputs.append((name, value, s))

    def done(self) -> Graph:
        return Graph(self.name, tuple(self.inputs.items()), tuple(self.steps), tuple(self.outputs))
