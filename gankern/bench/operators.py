"""Every operator's part of a benchmark: its sites in a network, its tensors, its call, and what a user would write
in plain PyTorch.

To add an operator: those four, how often an ideal kernel reads or writes x and y in each mode, and the sites whose
kernels are compiled ahead of time; then one entry in OPS.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gankern import ops
from gankern.bench import modulated
from gankern.bench.sites import CLAMP, SQRT2, Make, Network, Site, Tensors, along, plain_act, plain_fir
from gankern.ops.fir_act import bias_act_upfirdn2d, upfirdn2d_bias_act


@dataclass(frozen=True)
class Op:
    """An operator's part of a benchmark; `passes`: {mode: (times x, times y)} that an ideal kernel moves."""

    sites: Callable[[Network], list[Site]]
    tensors: Callable[[Site, Make], Tensors]
    call: Callable[[Site, Tensors, str | None], Tensor]
    eager: Callable[[Site, Tensors], Tensor]
    passes: dict[str, tuple[int, int]]
    compile_sites: tuple[Site, ...]
    memory_bound: bool = True


# -- bias_act ---------------------------------------------------------------------------------------------------------


def _bias_act_sites(network: Network) -> list[Site]:
    if network.kind == "progan":
        return [Site("lrelu", c, r) for c, r in network.levels()]
    return [Site(kind, c, r) for kind in ("lrelu", "lrelu + residual") for c, r in network.levels()]


def _bias_act_tensors(site: Site, make: Make) -> Tensors:
    t = {"x": make.image(site), "bias": make(site.channels)}
    return t | {"residual": make.image(site)} if "residual" in site.kind else t


def _bias_act(site: Site, t: Tensors, impl: str | None) -> Tensor:
    act = site.kind.split()[0]
    clamp = CLAMP if act == "lrelu" else None
    return ops.bias_act(t["x"], t["bias"], act=act, clamp=clamp, residual=t.get("residual"), impl=impl)


def _bias_act_eager(site: Site, t: Tensors) -> Tensor:
    u = t["x"] + along(t["bias"], t["x"])
    if site.kind in ("tanh", "swish"):
        return u.tanh() if site.kind == "tanh" else F.silu(u) * SQRT2
    y = plain_act(u)
    return y + t["residual"] if "residual" in t else y


# -- pixel_norm, bias_act_pixel_norm, minibatch_stddev, instance_norm --------------------------------------------------


def _x_alone(site: Site, make: Make) -> Tensors:
    return {"x": make.image(site)}


def _pixel_norm(site: Site, t: Tensors, impl: str | None) -> Tensor:
    return ops.pixel_norm(t["x"], impl=impl)


def _pixel_norm_eager(site: Site, t: Tensors) -> Tensor:
    x = t["x"]
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


def _pixel_norm_sites(network: Network) -> list[Site]:
    if network.kind == "progan":
        return [Site("image", c, r) for c, r in network.levels()]
    return [Site("latent", 512, 0)]


def _act_pixel_norm_sites(network: Network) -> list[Site]:
    return [Site("lrelu", c, r) for c, r in network.levels()] if network.kind == "progan" else []


def _act_pixel_norm_tensors(site: Site, make: Make) -> Tensors:
    return {"x": make.image(site), "bias": make(site.channels)}


def _act_pixel_norm(site: Site, t: Tensors, impl: str | None) -> Tensor:
    return ops.bias_act_pixel_norm(t["x"], t["bias"], site.kind, impl=impl)


def _act_pixel_norm_eager(site: Site, t: Tensors) -> Tensor:
    u = t["x"] + along(t["bias"], t["x"])
    a = {"lrelu": lambda u: F.leaky_relu(u, 0.2), "tanh": torch.tanh, "swish": F.silu}[site.kind](u)
    return _pixel_norm_eager(site, {"x": a})


def _stddev(site: Site, t: Tensors, impl: str | None) -> Tensor:
    return ops.minibatch_stddev(t["x"], 4, impl=impl)


def _stddev_eager(site: Site, t: Tensors) -> Tensor:
    x = t["x"]
    n, c, h, w = x.shape
    group = min(4, n)
    y = x.reshape(group, n // group, c, h, w).float() if x.dtype != torch.float64 else x.reshape(group, -1, c, h, w)
    y = (y.var(0, unbiased=False) + 1e-8).sqrt().mean([1, 2, 3], keepdim=True).to(x.dtype)
    return torch.cat([x, y.repeat(group, 1, h, w)], 1)


def _norm_sites(network: Network) -> list[Site]:
    """AdaIN with the activation after it, as StyleGAN's first version had it in ProGAN's network."""
    return [Site("adain lrelu", c, r) for c, r in network.levels()] if network.kind == "progan" else []


def _norm_tensors(site: Site, make: Make) -> Tensors:
    shapes = {"plain": None, "static": [site.channels], "adain": [make.batch, site.channels]}
    shapes["spade"] = [make.batch, site.channels, site.size, site.size]
    shape = shapes[site.kind.split()[0]]
    t = {"x": make.image(site)}
    return t if shape is None else t | {"weight": make(*shape), "bias": make(*shape)}


def _norm(site: Site, t: Tensors, impl: str | None) -> Tensor:
    act = "lrelu" if "lrelu" in site.kind else "linear"
    return ops.instance_norm(t["x"], t.get("weight"), t.get("bias"), act, weight_offset=1.0, impl=impl)


def _norm_eager(site: Site, t: Tensors) -> Tensor:
    y = F.instance_norm(t["x"])
    if "weight" in t:
        weight, bias = (v if v.ndim == 4 else v[..., None, None] for v in (t["weight"], t["bias"]))
        y = y * (1 + weight) + bias
    return F.leaky_relu(y, 0.2) * SQRT2 if "lrelu" in site.kind else y


# -- upfirdn2d --------------------------------------------------------------------------------------------------------


def _fir_sites(network: Network) -> list[Site]:
    if network.kind == "progan":  # it enlarges by repetition
        return []
    up = [Site("blur after up", c, r) for c, r in network.levels(8)]
    blur = [Site("blur before down", c, r) for c, r in network.levels(8)]
    down = [Site("down", c, r) for c, r in network.levels(8)]
    return up + blur + down + [Site("image up", 3, r // 2) for _, r in network.levels(8)]


def _fir_tensors(site: Site, make: Make) -> Tensors:
    t = {"x": make.image(site, more=site.kind == "blur after up")} | make.filters()
    if "taps" in site.kind:
        t["f"] = make.fir(4 if "4x4" in site.kind else 12, whole="x" in site.kind)
    return t


def _upfirdn2d(site: Site, t: Tensors, impl: str | None) -> Tensor:
    x, f = t["x"], t["f"]
    if site.kind == "12x12 taps":
        return ops.upfirdn2d(x, f, padding=6, impl=impl)
    if site.kind in ("blur after up", "4x4 taps"):
        return ops.upfirdn2d(x, f, padding=1, gain=4, impl=impl)
    if site.kind == "blur before down":
        return ops.upfirdn2d(x, f, padding=2, impl=impl)
    return (ops.downsample2d if site.kind == "down" else ops.upsample2d)(x, f, impl=impl)


def _upfirdn2d_eager(site: Site, t: Tensors) -> Tensor:
    x, f = t["x"], t["whole"]
    if site.kind == "image up":
        c = x.shape[1]
        return F.conv_transpose2d(x, (f * 4).to(x.dtype).expand(c, 1, 4, 4), stride=2, padding=1, groups=c)
    if site.kind == "12 taps":
        c, f = x.shape[1], torch.outer(t["f"], t["f"]) * 4
        return F.conv_transpose2d(x, f.to(x.dtype).expand(c, 1, 12, 12), stride=2, padding=5, groups=c)
    if site.kind == "12x12 taps":
        return plain_fir(x, t["f"].flip(0, 1), 6)
    if site.kind in ("blur after up", "4x4 taps"):
        return plain_fir(x, f * 4, 1)
    return plain_fir(x, f, 2) if site.kind == "blur before down" else plain_fir(x, f, 1, stride=2)


# -- the FIR filter with the activation after or before it -------------------------------------------------------------


def _filter_act_tensors(site: Site, make: Make) -> Tensors:
    return {"x": make.image(site, more=1), "bias": make(site.channels)} | make.filters()


def _filter_act(site: Site, t: Tensors, impl: str | None) -> Tensor:
    options = {"padding": 1, "filter_gain": 4, "act": "lrelu", "clamp": CLAMP, "impl": impl}
    return upfirdn2d_bias_act(t["x"], t["f"], t["bias"], **options)


def _filter_act_eager(site: Site, t: Tensors) -> Tensor:
    return plain_act(plain_fir(t["x"], t["whole"] * 4, 1) + along(t["bias"], t["x"]))


def _act_filter_tensors(site: Site, make: Make) -> Tensors:
    return {"x": make.image(site), "bias": make(site.channels)} | make.filters()


def _act_filter(site: Site, t: Tensors, impl: str | None) -> Tensor:
    return bias_act_upfirdn2d(t["x"], t["bias"], t["f"], act="lrelu", clamp=CLAMP, padding=2, impl=impl)


def _act_filter_eager(site: Site, t: Tensors) -> Tensor:
    return plain_fir(plain_act(t["x"] + along(t["bias"], t["x"])), t["whole"], 2)


# -- the table --------------------------------------------------------------------------------------------------------

_WIDE, _MIDDLE, _FINE = (512, 32), (128, 256), (32, 1024)  # config F at 1024

OPS: dict[str, Op] = {
    "bias_act": Op(
        _bias_act_sites,
        _bias_act_tensors,
        _bias_act,
        _bias_act_eager,
        {"forward": (1, 1), "backward": (1, 2), "double": (1, 2)},
        (
            *(Site("lrelu", *at) for at in (_MIDDLE, _WIDE, _FINE)),
            *(Site(k, *_MIDDLE) for k in ("lrelu + residual", "tanh", "swish")),
        ),
    ),
    "pixel_norm": Op(
        _pixel_norm_sites,
        _x_alone,
        _pixel_norm,
        _pixel_norm_eager,
        {"forward": (1, 1), "backward": (2, 1), "double": (3, 2)},
        (*(Site("image", *at) for at in (_MIDDLE, _WIDE, _FINE)), Site("latent", 512, 0)),
    ),
    "bias_act_pixel_norm": Op(
        _act_pixel_norm_sites,
        _act_pixel_norm_tensors,
        _act_pixel_norm,
        _act_pixel_norm_eager,
        {"forward": (1, 1), "backward": (2, 1), "double": (3, 2)},
        (
            *(Site("lrelu", *at) for at in (_MIDDLE, _WIDE, (16, 1024))),
            *(Site(kind, *_MIDDLE) for kind in ("tanh", "swish")),
        ),
    ),
    "minibatch_stddev": Op(
        lambda network: [Site("image", network.channels(4), 4)],
        _x_alone,
        _stddev,
        _stddev_eager,
        {"forward": (1, 1), "backward": (2, 1), "double": (3, 2)},
        (Site("image", 512, 4), Site("image", 512, 64)),
    ),
    "instance_norm": Op(
        _norm_sites,
        _norm_tensors,
        _norm,
        _norm_eager,
        {"forward": (1, 1), "backward": (2, 1), "double": (3, 2)},
        (
            *(Site("adain lrelu", *at) for at in (_MIDDLE, _WIDE, _FINE)),
            *(Site(kind, *at) for kind in ("plain", "static", "spade") for at in (_MIDDLE, _WIDE)),
        ),
    ),
    "upfirdn2d": Op(
        _fir_sites,
        _fir_tensors,
        _upfirdn2d,
        _upfirdn2d_eager,
        {"forward": (1, 1), "backward": (1, 1), "double": (1, 1)},
        tuple(
            Site(kind, *_MIDDLE)
            for kind in ("blur after up", "blur before down", "down", "image up", "4x4 taps", "12 taps", "12x12 taps")
        ),
    ),
    "upfirdn2d_bias_act": Op(
        lambda network: [site for site in _fir_sites(network) if site.kind == "blur after up"],
        _filter_act_tensors,
        _filter_act,
        _filter_act_eager,
        {"forward": (1, 1), "backward": (1, 2), "double": (1, 2)},
        (Site("blur after up", *_MIDDLE), Site("blur after up", *_FINE)),
    ),
    "bias_act_upfirdn2d": Op(
        lambda network: [site for site in _fir_sites(network) if site.kind == "blur before down"],
        _act_filter_tensors,
        _act_filter,
        _act_filter_eager,
        {"forward": (1, 1), "backward": (2, 1), "double": (2, 1)},
        (Site("blur before down", *_MIDDLE), Site("blur before down", *_FINE)),
    ),
    "modulated_conv2d": Op(
        modulated.layer_sites,
        modulated.layer_tensors,
        modulated.layer,
        modulated.layer_eager,
        {"forward": (1, 1), "backward": (2, 2)},
        (
            Site("conv1", *_MIDDLE, 128),
            Site("conv1 chained", *_MIDDLE, 128),
            Site("conv1 chained unclamped", *_MIDDLE, 128),
            Site("conv0 up", 256, 128, 128),
            Site("torgb", *_MIDDLE, 3),
        ),
        memory_bound=False,
    ),
    "residual_branches": Op(
        modulated.branch_sites,
        modulated.branch_tensors,
        modulated.branches,
        modulated.branches_eager,
        {"forward": (2, 1), "backward": (3, 1)},
        (Site("block", *_MIDDLE, 128),),
        memory_bound=False,
    ),
    "conv2d_bias_act": Op(
        modulated.conv_sites,
        modulated.conv_tensors,
        modulated.conv,
        modulated.conv_eager,
        {"forward": (1, 1), "backward": (2, 2)},
        (
            Site("conv0", *_MIDDLE, 128),
            Site("conv1 down + sum", *_MIDDLE, 256),
            Site("fromrgb", 3, 1024, 32),
        ),
        memory_bound=False,
    ),
    "demodulate": Op(
        modulated.demodulation_sites,
        modulated.demodulation_tensors,
        modulated.demodulation,
        modulated.demodulation_eager,
        {"forward": (1, 1), "backward": (2, 1)},
        (Site("layer", 512, 0, 512),),
        memory_bound=False,
    ),
    "prepare_weights": Op(
        modulated.weight_sites,
        modulated.weight_tensors,
        modulated.prepared,
        modulated.prepared_eager,
        {"forward": (1, 1), "backward": (2, 1)},
        (Site("weights", 128, 0, 64),),
        memory_bound=False,
    ),
}
