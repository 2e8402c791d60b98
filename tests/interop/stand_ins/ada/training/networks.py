"""StyleGAN2 as code bases of the StyleGAN2-ADA lineage compose it of their operators. p: weights by public names.

A convolution is modulated in one of two ways: as one of N groups with N weights (`grouped`), or by scaling activations.
"""

import math

import torch
from torch_utils.ops import bias_act, conv2d_gradfix, conv2d_resample, fma, upfirdn2d


def dense(p, name, x, act="linear", lr=1.0):
    w = p[f"{name}.weight"] * (lr / math.sqrt(p[f"{name}.weight"].shape[1]))
    return bias_act.bias_act(x @ w.t(), p[f"{name}.bias"] * lr, act=act)


def unit(x):
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def mapping(p, prefix, z, c):
    parts = [] if z is None else [unit(z)]
    if f"{prefix}embed.weight" in p:
        parts.append(unit(dense(p, f"{prefix}embed", c)))
    w = torch.cat(parts, 1)
    for i in range(sum(name.startswith(f"{prefix}fc") for name in p) // 2):
        w = dense(p, f"{prefix}fc{i}", w, "lrelu", 0.01)
    return w


def modulated_conv2d(x, w, s, noise=None, up=1, f=None, demodulate=True, grouped=False):
    n, (o, i, k, _) = len(x), w.shape
    args = {"f": f, "up": up, "padding": k // 2, "flip_weight": up == 1}
    each = w[None] * s[:, None, :, None, None]  # [N, O, I, k, k]
    coefficients = (each.square().sum([2, 3, 4]) + 1e-8).rsqrt() if demodulate else None
    if grouped:
        each = each if coefficients is None else each * coefficients[:, :, None, None, None]
        y = conv2d_resample.conv2d_resample(
            x.reshape(1, n * i, *x.shape[2:]), each.reshape(n * o, i, k, k), groups=n, **args
        )
        y = y.reshape(n, o, *y.shape[2:])
        return y if noise is None else y + noise
    y = conv2d_resample.conv2d_resample(x * s[:, :, None, None], w, **args)
    if coefficients is None:
        return y
    coefficients = coefficients[:, :, None, None]
    return y * coefficients if noise is None else fma.fma(y, coefficients, noise)


def layer(p, name, x, w, up, noise, grouped):
    noise = p[f"{name}.noise_const"] * p[f"{name}.noise_strength"] if noise else None
    f = p[f"{name}.resample_filter"]
    s = dense(p, f"{name}.affine", w)
    x = modulated_conv2d(x, p[f"{name}.weight"], s, noise, up, f, grouped=grouped)
    return bias_act.bias_act(x, p[f"{name}.bias"], act="lrelu")


def resolutions(p):
    return sorted({int(part[1:]) for name in p for part in name.split(".") if part[0] == "b" and part[1:].isdigit()})


def synthesis(p, ws, noise=True, grouped=False):
    """ws [N, num_ws, w_dim] -> images; to-RGB shares its w with the next block's first convolution."""
    x, img, i = p["synthesis.b4.const"][None].repeat(len(ws), 1, 1, 1), None, 0
    for r in resolutions(p):
        b = f"synthesis.b{r}"
        for conv, up in [("conv1", 1)] if r == 4 else [("conv0", 2), ("conv1", 1)]:
            x, i = layer(p, f"{b}.{conv}", x, ws[:, i], up, noise, grouped), i + 1
        weight = p[f"{b}.torgb.weight"]
        s = dense(p, f"{b}.torgb.affine", ws[:, i]) / math.sqrt(weight.shape[1])
        y = modulated_conv2d(x, weight, s, demodulate=False, grouped=grouped)
        y = bias_act.bias_act(y, p[f"{b}.torgb.bias"])
        img = y if img is None else upfirdn2d.upsample2d(img, p[f"{b}.resample_filter"]) + y
    return img


def num_ws(p):
    return 2 * len(resolutions(p))


def generator_ws(p, z, c):
    return mapping(p, "mapping.", z, c)[:, None].repeat(1, num_ws(p), 1)


def conv(p, name, x, act="lrelu", down=1, gain=1.0):
    w = p[f"{name}.weight"]
    w = w / math.sqrt(w[0].numel())
    f = p[f"{name}.resample_filter"]
    x = conv2d_resample.conv2d_resample(x, w, f, down=down, padding=w.shape[-1] // 2)
    gain *= bias_act.activation_funcs[act].def_gain
    return bias_act.bias_act(x, p.get(f"{name}.bias"), act=act, gain=gain)


def minibatch_std(x, group=4):
    g = x.reshape(group, -1, *x.shape[1:])
    s = ((g - g.mean(0)).square().mean(0) + 1e-8).sqrt().mean([1, 2, 3], keepdim=True)
    return torch.cat([x, s.repeat(group, 1, *x.shape[2:])], 1)


def discriminator(p, img, c):
    x = None
    for r in resolutions(p)[:0:-1]:
        b = f"b{r}"
        x = conv(p, f"{b}.fromrgb", img) if x is None else x
        y = conv(p, f"{b}.skip", x, "linear", 2, math.sqrt(0.5))
        x = conv(p, f"{b}.conv1", conv(p, f"{b}.conv0", x), down=2, gain=math.sqrt(0.5)) + y
    x = conv(p, "b4.conv", minibatch_std(x)).flatten(1)
    x = dense(p, "b4.out", dense(p, "b4.fc", x, "lrelu"))
    if c is None or "mapping.embed.weight" not in p:
        return x
    return (x * mapping(p, "mapping.", None, c)).sum(1, keepdim=True) / math.sqrt(x.shape[1])


def r1_gradient(logits, img):
    with conv2d_gradfix.no_weight_gradients():
        return torch.autograd.grad(logits.sum(), [img], create_graph=True)[0]
