"""The convolutional layers' parts of a benchmark, and those of the small operators around them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gankern import ops
from gankern.bench.sites import CLAMP, SQRT2, Make, Network, Site, Tensors, along, plain_act, plain_fir
from gankern.ops import Weight

# -- modulated_conv2d -------------------------------------------------------------------------------------------------


def layer_sites(network: Network) -> list[Site]:
    if network.kind == "progan":
        return []
    up = [Site("conv0 up", network.channels(r // 2), r // 2, c) for c, r in network.levels(8)]
    flat = [Site("conv1", c, r, c) for c, r in network.levels()]
    return up + flat + [Site("torgb", c, r, 3) for c, r in network.levels()]


def layer_tensors(site: Site, make: Make) -> Tensors:
    k = 1 if site.kind == "torgb" else 3
    wide = torch.float32
    t = {"x": make.image(site), "weight": make(site.out, site.channels, k, k, dtype=wide)}
    t |= {"styles": make(make.batch, site.channels, dtype=wide), "bias": make(site.out)}
    if site.kind != "torgb":
        size = site.size * 2 if site.kind == "conv0 up" else site.size
        t |= {"noise": make(make.batch, 1, size, size, grad=False, dtype=wide), "strength": make(1, dtype=wide)}
        t |= make.filters()
    return t | {"next": make(make.batch, site.out, dtype=wide)} if "chained" in site.kind else t


def layer(site: Site, t: Tensors, impl: str | None) -> Tensor:
    tensors = {"bias": t["bias"], "impl": impl, "clamp": None if "unclamped" in site.kind else CLAMP}
    if site.kind == "torgb":
        styles = t["styles"] * (1 / math.sqrt(site.channels))
        return ops.modulated_conv2d(t["x"], t["weight"], styles, demodulate=False, **tensors)
    up = 2 if site.kind == "conv0 up" else 1
    options = {"up": up, "padding": 1, "flip_weight": up == 1, "act": "lrelu", "resample_filter": t["f"]}
    tensors |= {"noise": t["noise"], "noise_strength": t["strength"]}
    if "chained" in site.kind:
        tensors |= {"styled": True, "next_styles": t["next"]}
    return ops.modulated_conv2d(t["x"], t["weight"], t["styles"], **tensors, **options)


def layer_eager(site: Site, t: Tensors) -> Tensor:
    x, w, s = t["x"], t["weight"], t["styles"]
    kernel = w.to(x.dtype)
    if site.kind == "torgb":
        s = s * (1 / math.sqrt(site.channels))
        y = F.conv2d(x * s.to(x.dtype)[:, :, None, None], kernel, t["bias"])
        return y.clamp(-CLAMP, CLAMP)
    if "chained" not in site.kind:
        x = x * s.to(x.dtype)[:, :, None, None]
    if site.kind == "conv0 up":
        x = plain_fir(F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2), t["whole"] * 4, 1)
    else:
        x = F.conv2d(x, kernel, padding=1)
    d = (s.square() @ w.square().sum([2, 3]).t() + 1e-8).rsqrt()
    x = x * d.to(x.dtype)[:, :, None, None] + (t["noise"] * t["strength"]).to(x.dtype)
    y = plain_act(x + along(t["bias"], x), math.inf if "unclamped" in site.kind else CLAMP)
    return y * t["next"].to(x.dtype)[:, :, None, None] if "chained" in site.kind else y


# -- demodulate, prepare_weights ---------------------------------------------------------------------------------------


def demodulation_sites(network: Network) -> list[Site]:
    return [Site("layer", c, 0, c) for c in dict.fromkeys(c for c, _ in network.levels())]


def demodulation_tensors(site: Site, make: Make) -> Tensors:
    wide = torch.float32
    return {"x": make(make.batch, site.channels, dtype=wide), "weight": make(site.out, site.channels, dtype=wide)}


def demodulation(site: Site, t: Tensors, impl: str | None) -> Tensor:
    return ops.demodulate(t["weight"].square(), t["x"], impl=impl)


def demodulation_eager(site: Site, t: Tensors) -> Tensor:
    return (t["x"].square() @ t["weight"].square().t() + 1e-8).rsqrt()


def weight_sites(network: Network) -> list[Site]:
    return [Site("weights", c, 0, c) for c in dict.fromkeys(c for c, _ in network.levels())]


def weight_tensors(site: Site, make: Make) -> Tensors:
    wide = torch.float32
    return {"x": make(site.out, site.channels, 3, 3, dtype=wide), "up": make(site.out, site.channels, 3, 3, dtype=wide)}


def prepared(site: Site, t: Tensors, impl: str | None) -> Tensor:
    how = [Weight(tuple(t["x"].shape), 0.5, energy=True), Weight(tuple(t["up"].shape), 0.5, transposed=True)]
    (a, b), (energy, _) = ops.prepare_weights([t["x"], t["up"]], how, t["x"].dtype, impl=impl)
    return torch.cat([a.flatten(), b.flatten(), energy.flatten()])


def prepared_eager(site: Site, t: Tensors) -> Tensor:
    scaled = [(t[name] * 0.5).flatten() for name in ("x", "up")]
    return torch.cat([*scaled, t["x"].square().sum([2, 3]).flatten()])


# -- residual_branches -------------------------------------------------------------------------------------------------


def branch_sites(network: Network) -> list[Site]:
    return [Site("block", c, r, c) for c, r in network.levels(8)] if network.kind == "stylegan2" else []


def branch_tensors(site: Site, make: Make) -> Tensors:
    return {"x": make.image(site), "weight": make(site.out, site.channels, 3, 3)} | make.filters()


def _together(t: Tensor, s: Tensor) -> Tensor:
    return torch.cat([t.flatten(1), s.flatten(1)], 1)


def branches(site: Site, t: Tensors, impl: str | None) -> Tensor:
    return _together(*ops.residual_branches(t["x"], t["weight"], t["f"], 1, impl=impl))


def branches_eager(site: Site, t: Tensors) -> Tensor:
    return _together(F.conv2d(t["x"], t["weight"], padding=1), plain_fir(t["x"], t["whole"], 1, stride=2))


# -- conv2d_bias_act ---------------------------------------------------------------------------------------------------


def conv_sites(network: Network) -> list[Site]:
    """The discriminator's: from RGB, of the same size, and those that reduce (with the sum in StyleGAN2's)."""
    same = [Site("conv0", c, r, c) for c, r in network.levels()]
    last = "conv1 down" if network.kind == "progan" else "conv1 down + sum"
    reducing = [Site(last, c, r, network.channels(r // 2)) for c, r in network.levels(8)]
    return [Site("fromrgb", 3, r, c) for c, r in network.levels()[-1:]] + same + reducing


def _stride(site: Site) -> int:
    return 2 if "down" in site.kind else 1


def conv_tensors(site: Site, make: Make) -> Tensors:
    k, size = 1 if site.kind == "fromrgb" else 3, site.size // _stride(site)
    t = {"x": make.image(site), "weight": make(site.out, site.channels, k, k), "bias": make(site.out)}
    return t | {"residual": make(make.batch, site.out, size, size)} if "sum" in site.kind else t


def conv(site: Site, t: Tensors, impl: str | None) -> Tensor:
    args = _stride(site), t["weight"].shape[-1] // 2
    return ops.conv2d_bias_act(t["x"], t["weight"], t["bias"], *args, residual=t.get("residual"), impl=impl)


def conv_eager(site: Site, t: Tensors) -> Tensor:
    y = F.conv2d(t["x"], t["weight"], t["bias"], _stride(site), t["weight"].shape[-1] // 2)
    y = F.leaky_relu(y, 0.2) * SQRT2
    return y + t["residual"] if "residual" in t else y
