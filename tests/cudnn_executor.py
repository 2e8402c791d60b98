"""A second implementation of cuDNN's graphs: each step in eager PyTorch, in at least float32, as it is described."""

import torch
import torch.nn.functional as F

from gankern.ops.cudnn.graph import Graph, spec


def _sum(t, shape):
    for dim, (have, want) in enumerate(zip(t.shape, shape, strict=True)):
        t = t.sum(dim, keepdim=True) if have != want else t
    return t


def _run(step, operands):
    a, *more = operands
    if step.kind == "conv":
        stride, padding = step.numbers
        return F.conv2d(a, more[0], stride=int(stride), padding=int(padding))
    if step.kind == "input_grad":
        stride, padding = map(int, step.numbers)
        return torch.nn.grad.conv2d_input(step.shape, more[0], a, stride=stride, padding=padding)
    if step.kind == "lrelu":
        return F.leaky_relu(a, step.numbers[0])
    if step.kind == "lrelu_grad":
        return torch.where(more[0] > 0, a, a * step.numbers[0])
    if step.kind == "sum":
        return _sum(a, step.shape)
    return {"mul": torch.mul, "add": torch.add}[step.kind](a, more[0])


def execute(graph: Graph, given: list) -> None:
    """In the place of `plans.execute`: the same operands, each checked against its description."""
    names = [name for name, _ in graph.inputs] + [name for name, _, _ in graph.outputs]
    tensors, values = dict(zip(names, given, strict=True)), {}
    for name, described in graph.inputs:
        t = tensors[name]
        assert spec(t) == described, f"{graph.name}: {name} lies as {spec(t)}, described as {described}"
        wide = torch.promote_types(t.dtype, torch.float32)
        values[name] = t.as_strided(described.shape, described.strides).to(wide)
    for step in graph.steps:
        values[step.name] = _run(step, [values[name] for name in step.of])
        assert tuple(values[step.name].shape) == step.shape, f"{graph.name}: {step}"
    sums = {step.name for step in graph.steps if step.kind == "sum"}
    for name, value, described in graph.outputs:
        out = tensors[name]
        assert value not in sums or not out.any(), f"{graph.name}: {name} isn't zero before its sum is added to it"
        assert spec(out) == described, f"{graph.name}: {name} lies as {spec(out)}, described as {described}"
        out.as_strided(described.shape, described.strides).copy_(values[value])
