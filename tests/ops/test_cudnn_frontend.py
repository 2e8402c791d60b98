"""What the frontend of cuDNN is told of a graph, and what is said where it can't serve."""

import importlib.machinery
import importlib.util
import sys
import types

import pytest
import torch
from cudnn_notes import Frontend
from test_selection import image

from gankern.ops import _impl, use_impl
from gankern.ops.cudnn import frontend, layers, plans
from gankern.ops.cudnn.graph import spec

pytestmark = pytest.mark.unforced
NETWORKS = ("synthesis", "discriminator")


# -- the description ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cudnn(monkeypatch):
    """The frontend that takes notes."""
    fake = Frontend()
    monkeypatch.setattr(frontend, "module", lambda: fake)
    return fake


def nhwc(*shape, dtype=torch.bfloat16):
    return torch.zeros(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def how(padding, stride):
    return {"padding": [padding] * 2, "stride": [stride] * 2, "dilation": [1, 1]}


def check_operands(g, graph):
    """Numbers, shapes, strides and types, in the order of `plans.run`."""
    types_ = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
    inputs = [v for v in g.values if v.made_by == "tensor"]
    assert len(inputs) == len(graph.inputs)
    for uid, (value, (name, s)) in enumerate(zip(inputs, graph.inputs, strict=True), 1):
        want = {"name": name, "dim": list(s.shape), "stride": list(s.strides), "data_type": types_[s.dtype]}
        assert value.args == want
        assert value.told == {"uid": uid}
    steps = dict(zip((s.name for s in graph.steps), (v for v in g.values if v.made_by != "tensor"), strict=True))
    for uid, (_, value, s) in enumerate(graph.outputs, len(graph.inputs) + 1):
        want = {
            "output": True,
            "data_type": types_[s.dtype],
            "dim": list(s.shape),
            "stride": list(s.strides),
            "uid": uid,
        }
        assert steps[value].told.items() >= want.items()
    written = {value for _, value, _ in graph.outputs}
    assert not [v for k, v in steps.items() if k not in written and "output" in v.told]
    return dict(zip((name for name, _ in graph.inputs), inputs, strict=True)), steps


def layer_gradient(form, dtype=torch.bfloat16):
    """With all that there is, of operands that lie beside others in memory."""
    same = form == "gradient"
    dt, saved = nhwc(2, 5, 8, 8, dtype=dtype), nhwc(2, 3, *([8, 8] if same else [4, 4]), dtype=dtype)
    w = nhwc(*([5, 3, 3, 3] if same else [3, 5, 6, 6]), dtype=dtype)
    row = torch.zeros(2, 12)[:, 4:7]
    image, noise = (
        torch.zeros(2, 3, *saved.shape[2:], dtype=dtype)[:, :1],
        torch.zeros(1, 1, *saved.shape[2:], dtype=dtype),
    )
    operands = [spec(v) for v in (dt, w, row, saved, row, row, image, noise, row, row)]
    return layers.modulated_gradient(form, *operands, *((1, 1) if same else (2, 2)), 0.2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["gradient", "conv"])
def test_a_gradient_as_it_is_described(cudnn, form, dtype):
    graph = layer_gradient(form, dtype)
    g = frontend.describe(graph, device_property="sm_90")
    io = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    assert g.args == {
        "io_data_type": io,
        "intermediate_data_type": "fp32",
        "compute_data_type": "fp32",
        "device_property": "sm_90",
    }
    inputs, steps = check_operands(g, graph)
    values = inputs | steps
    dx = steps[graph.steps[0].name]
    if form == "gradient":
        assert dx.made_by == "conv_dgrad"
        assert dx.args == {
            "loss": inputs["dt"],
            "filter": inputs["w"],
            "padding": [1, 1],
            "stride": [1, 1],
            "dilation": [1, 1],
        }
        assert dx.told == {"dim": [2, 3, 8, 8], "stride": [192, 1, 24, 3]}
    else:
        assert dx.made_by == "conv_fprop"
        assert dx.args == {
            "image": inputs["dt"],
            "weight": inputs["w"],
            "padding": [2, 2],
            "stride": [2, 2],
            "dilation": [1, 1],
        }
    for step in graph.steps[1:]:
        value, (first, *more) = steps[step.name], [values[name] for name in step.of]
        name, args = {
            "mul": ("mul", {"a": first, "b": more[:1]}),
            "add": ("add", {"a": first, "b": more[:1]}),
            "sum": ("reduction", {"input": first, "mode": "ADD"}),
            "lrelu_grad": ("leaky_relu_backward", {"loss": first, "input": more[:1], "negative_slope": 0.2}),
        }[step.kind]
        assert value.made_by == name
        assert value.args == {key: v[0] if isinstance(v, list) else v for key, v in args.items()}
    assert {v.made_by for v in steps.values()} > {"mul", "add", "reduction", "leaky_relu_backward"}


def test_a_layer_as_described(cudnn):
    """The strides of a strided convolution, its activation, and the sum after it."""
    x, w, y = nhwc(2, 3, 4, 4), nhwc(5, 3, 3, 3), nhwc(2, 5, 2, 2)
    graph = layers.plain(*map(spec, (x, w, torch.zeros(5), y, y)), 2, 1, 0.3)
    g = frontend.describe(graph, handle=1)
    assert g.args["handle"] == 1
    inputs, steps = check_operands(g, graph)
    conv, biased, active, summed = steps.values()
    assert conv.args == {
        "image": inputs["x"],
        "weight": inputs["w"],
        "padding": [1, 1],
        "stride": [2, 2],
        "dilation": [1, 1],
    }
    assert (biased.made_by, biased.args) == ("add", {"a": conv, "b": inputs["b"]})
    assert (active.made_by, active.args) == ("leaky_relu", {"input": biased, "negative_slope": 0.3})
    assert (summed.made_by, summed.args) == ("add", {"a": active, "b": inputs["residual"]})


# -- what can run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch):
    """installed(backend_version) -> what `frontend.module` says of a module cudnn whose library is so."""

    def install(backend_version):
        module = types.ModuleType("cudnn")
        module.__spec__ = importlib.machinery.ModuleSpec("cudnn", None)
        module.backend_version = backend_version
        monkeypatch.setitem(sys.modules, "cudnn", module)
        return frontend.module.__wrapped__()

    return install


def test_a_frontend_that_is_there(installed):
    assert installed(lambda: frontend.OLDEST_CUDNN) is sys.modules["cudnn"]


def test_a_frontend_that_is_not(monkeypatch, installed):
    assert installed(lambda: 90100).startswith("cuDNN 9.1.0 is too old, 9.8.0 or newer is needed (see README)")

    def broken():
        raise OSError("libcudnn.so.9: cannot open\nand so on")

    assert installed(broken) == "nvidia-cudnn-frontend can't load cuDNN: libcudnn.so.9: cannot open"
    monkeypatch.delitem(sys.modules, "cudnn")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert frontend.module.__wrapped__() == "nvidia-cudnn-frontend isn't installed (pip install 'gankern[cudnn]')"


def test_forced_on_a_cpu():
    """Networks' operators refuse; what cuDNN doesn't have runs as what stands in for it."""
    x = torch.zeros(1, 3, 4, 4)
    with use_impl("cudnn"):
        assert _impl.choose("bias_act", None, x) == "triton"
        for network in NETWORKS:
            with pytest.raises(ValueError, match=f"use_impl='cudnn': {network} can't run so: x is on cpu, expected a"):
                _impl.runs_whole(network, x)
        with pytest.raises(ValueError, match="use_impl='cudnn': modulated_conv2d can't run so: x is on cpu"):
            _impl.choose("modulated_conv2d", None, x)


def test_forced_by_the_environment_without_a_frontend(monkeypatch):
    monkeypatch.setenv("GANKERN_IMPL", "cudnn")
    monkeypatch.setattr(frontend, "module", lambda: "nvidia-cudnn-frontend isn't installed")
    for choose in (lambda x: _impl.runs_whole("synthesis", x), lambda x: _impl.choose("modulated_conv2d", None, x)):
        with pytest.raises(ValueError, match=r"GANKERN_IMPL='cudnn': \w+ can't run so: nvidia-cudnn-frontend isn't"):
            choose(image())
    monkeypatch.setattr(plans, "problem", lambda device: None)
    assert _impl.runs_whole("synthesis", image())
    assert _impl.choose("modulated_conv2d", None, image()) == "cudnn"
    # a network has layers in float32 too: Triton's kernels, where no call asks for cuDNN itself
    assert not _impl.runs_whole("synthesis", image(torch.float32))
    assert _impl.choose("modulated_conv2d", None, image(torch.float32)) == "triton"
    with pytest.raises(ValueError, match=r"x is torch\.float32, and cuDNN's fused convolutions take bfloat16"):
        _impl.choose("modulated_conv2d", "cudnn", image(torch.float32))
    assert _impl.implementations()["bias_act"]["choice"] == "triton"


def test_networks_run_whole_where_that_was_measured_to_be_faster(monkeypatch):
    x = image()
    monkeypatch.setattr(plans, "problem", lambda device: None)
    monkeypatch.setattr(_impl._settings, "implementation", lambda op, x: "cudnn" if op == "synthesis" else None)
    assert [_impl.runs_whole(network, x) for network in NETWORKS] == [True, False]
    with use_impl("triton"):
        assert not _impl.runs_whole("synthesis", x)
