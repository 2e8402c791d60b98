"""cuDNN's graph API behind `graph.Graph`: what is installed, and how a graph becomes one of its own.

The frontend (nvidia-cudnn-frontend) looks for cuDNN by itself; what it loads must be torch's.
"""

import functools
import importlib.metadata
import importlib.util

import torch

from gankern.ops.cudnn.graph import Graph, Step
from gankern.ops.cudnn.layers import nhwc

OLDEST_CUDNN = 90800
"""The first that plans these graphs; NATIVE_CUDNN has kernels of Hopper's own for them."""
NATIVE_CUDNN = 92400
HOW = "pip install 'gankern[cudnn]'"


@functools.cache
def module():
    """The frontend, or why it can't be used, as a string."""
    if importlib.util.find_spec("cudnn") is None:
        return f"nvidia-cudnn-frontend isn't installed ({HOW})"
    try:
        import cudnn

        version = cudnn.backend_version()
    except Exception as error:  # what a broken or missing library raises is the loader's
        return f"nvidia-cudnn-frontend can't load cuDNN: {(str(error).splitlines() or [type(error).__name__])[0]}"
    if version < OLDEST_CUDNN:
        return f"cuDNN {version_name(version)} is too old, {version_name(OLDEST_CUDNN)} or newer is needed (see README)"
    own = torch.backends.cudnn.version()
    if own is not None and own != version:
        both = f"the frontend loads cuDNN {version_name(version)}, torch {version_name(own)}"
        return f"{both}: two in one process don't mix; is another one in LD_LIBRARY_PATH?"
    return cudnn


def version_name(version: int) -> str:
    """90800 -> 9.8.0."""
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


def versions() -> str:
    """Of the frontend and of cuDNN; a part of every plan's name."""
    return f"{importlib.metadata.version('nvidia-cudnn-frontend')}-{version_name(module().backend_version())}"


def describe(graph: Graph, **where):
    """`graph` as cuDNN's. `where`: handle, or device_property for a GPU that isn't there. The number of an operand is
    its place among inputs and outputs, from 1."""
    cudnn = module()
    types = {
        torch.bfloat16: cudnn.data_type.BFLOAT16,
        torch.float16: cudnn.data_type.HALF,
        torch.float32: cudnn.data_type.FLOAT,
    }
    single = cudnn.data_type.FLOAT
    g = cudnn.pygraph(
        io_data_type=types[graph.io_dtype], intermediate_data_type=single, compute_data_type=single, **where
    )
    values = {}
    for uid, (name, s) in enumerate(graph.inputs, 1):
        values[name] = g.tensor(name=name, dim=list(s.shape), stride=list(s.strides), data_type=types[s.dtype])
        values[name].set_uid(uid)
    for step in graph.steps:
        value = _add(cudnn, g, step, [values[name] for name in step.of])
        # said, since a product of a map and a row else lies as the map does, which no engine takes
        values[step.name] = value.set_dim(list(step.shape)).set_stride(list(nhwc(step.shape, torch.float32).strides))
    for uid, (_, value, s) in enumerate(graph.outputs, len(graph.inputs) + 1):
        out = values[value].set_output(True).set_data_type(types[s.dtype])
        out.set_dim(list(s.shape)).set_stride(list(s.strides)).set_uid(uid)
    return g


def _add(cudnn, g, step: Step, operands: list):
    a, *more = operands
    if step.kind in ("conv", "input_grad"):
        stride, padding = ([int(v)] * 2 for v in step.numbers)
        args = {"padding": padding, "stride": stride, "dilation": [1, 1]}
        if step.kind == "conv":
            return g.conv_fprop(image=a, weight=more[0], **args)
        return g.conv_dgrad(loss=a, filter=more[0], **args)
    if step.kind == "lrelu":
        return g.leaky_relu(input=a, negative_slope=step.numbers[0])
    if step.kind == "lrelu_grad":
        return g.leaky_relu_backward(loss=a, input=more[0], negative_slope=step.numbers[0])
    if step.kind == "sum":
        return g.reduction(input=a, mode=cudnn.reduction_mode.ADD)
    return {"mul": g.mul, "add": g.add}[step.kind](a=a, b=more[0])


def candidates(graph: Graph, **where):
    """(cuDNN's graph, the names of the plans that its heuristics propose, the likely fastest first). Raises ValueError
    with the first line of a refusal."""
    cudnn = module()
    try:
        g = describe(graph, **where)
        g.validate()
        g.build_operation_graph()
        g.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    except Exception as error:  # the frontend raises its own kinds and RuntimeError
        raise ValueError((str(error).strip().splitlines() or [type(error).__name__])[0]) from None
    return g, [g.get_plan_name_at_index(i) for i in range(g.get_execution_plan_count())]


def build(g, index: int) -> bool:
    """Compiles the plan of that index; whether that worked."""
    try:
        g.build_plan_at_index(index)
    except Exception:  # an engine that proposed itself and then refuses
        return False
    return True
