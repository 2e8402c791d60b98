"""StyleGAN2 as rosinality's lineage composes it. p: weights by StyleGAN2-ADA's public names, kernels without the
leading 1; unconditional."""

import math

import torch
import torch.nn.functional as F
from op import FusedLeakyReLU, conv2d_gradfix, fused_leaky_relu, upfirdn2d

KERNEL = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64


def equal_linear(p, name, x, activation=False, lr_mul=1.0):
    w = p[f"{name}.weight"]
    w, b = w * (lr_mul / math.sqrt(w.shape[1])), p[f"{name}.bias"] * lr_mul
    return fused_leaky_relu(F.linear(x, w), b) if activation else F.linear(x, w, b)


def activated(p, name, x):
    """The module, with our weight in it."""
    act = FusedLeakyReLU(x.shape[1])
    return torch.func.functional_call(act, {"bias": p[f"{name}.bias"]}, (x,))


def modulated(x, weight, style, demodulate=True, upsample=False):
    n, (_, o, i, k, _) = len(x), weight.shape
    w = weight * style.view(n, 1, i, 1, 1)
    if demodulate:
        w = w * (w.square().sum([2, 3, 4]) + 1e-8).rsqrt().view(n, o, 1, 1, 1)
    x = x.reshape(1, n * i, *x.shape[2:])
    if upsample:
        w = w.transpose(1, 2).reshape(n * i, o, k, k)
        y = conv2d_gradfix.conv_transpose2d(x, w, padding=0, stride=2, groups=n)
    else:
        y = conv2d_gradfix.conv2d(x, w.view(n * o, i, k, k), padding=k // 2, groups=n)
    y = y.view(n, o, *y.shape[2:])
    return upfirdn2d(y, KERNEL * 4, pad=(1, 1)) if upsample else y


def styled_conv(p, name, x, w, upsample=False):
    weight = p[f"{name}.weight"][None]
    x = modulated(x, weight, equal_linear(p, f"{name}.affine", w), upsample=upsample)
    x = x + p[f"{name}.noise_strength"] * p[f"{name}.noise_const"]
    return activated(p, name, x)


def mapping(p, z):
    w = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
    for i in range(sum(name.startswith("mapping.fc") for name in p) // 2):
        w = equal_linear(p, f"mapping.fc{i}", w, True, 0.01)
    return w


def resolutions(p):
    return sorted({int(part[1:]) for name in p for part in name.split(".") if part[0] == "b" and part[1:].isdigit()})


def generator_ws(p, z, c=None):
    return mapping(p, z)[:, None].repeat(1, 2 * len(resolutions(p)), 1)


def synthesis(p, ws):
    x, img, i = p["synthesis.b4.const"][None].repeat(len(ws), 1, 1, 1), None, 0
    for r in resolutions(p):
        b = f"synthesis.b{r}"
        if r > 4:
            x, i = styled_conv(p, f"{b}.conv0", x, ws[:, i], upsample=True), i + 1
        x, i = styled_conv(p, f"{b}.conv1", x, ws[:, i]), i + 1
        weight = p[f"{b}.torgb.weight"][None]
        style = equal_linear(p, f"{b}.torgb.affine", ws[:, i]) / math.sqrt(weight.shape[2])
        y = modulated(x, weight, style, demodulate=False) + p[f"{b}.torgb.bias"].view(1, -1, 1, 1)
        img = y if img is None else y + upfirdn2d(img, KERNEL * 4, up=2, down=1, pad=(2, 1))
    return img


def conv_layer(p, name, x, downsample=False, activate=True):
    w = p[f"{name}.weight"]
    w, k = w / math.sqrt(w[0].numel()), w.shape[-1]
    if downsample:
        pad = 2 + k - 1
        x = upfirdn2d(x, KERNEL, pad=((pad + 1) // 2, pad // 2))
    x = conv2d_gradfix.conv2d(x, w, stride=2 if downsample else 1, padding=0 if downsample else k // 2)
    return activated(p, name, x) if activate else x


def discriminator(p, img, c=None):
    top = max(resolutions(p))
    x = conv_layer(p, f"b{top}.fromrgb", img)
    for r in resolutions(p)[:0:-1]:
        y = conv_layer(p, f"b{r}.conv1", conv_layer(p, f"b{r}.conv0", x), downsample=True)
        x = (y + conv_layer(p, f"b{r}.skip", x, downsample=True, activate=False)) / math.sqrt(2)
    g = x.view(4, -1, *x.shape[1:])
    s = (g.var(0, unbiased=False) + 1e-8).sqrt().mean([1, 2, 3], keepdim=True)
    x = torch.cat([x, s.repeat(4, 1, *x.shape[2:])], 1)
    x = conv_layer(p, "b4.conv", x).flatten(1)
    return equal_linear(p, "b4.out", equal_linear(p, "b4.fc", x, True))


def r1_gradient(logits, img):
    with conv2d_gradfix.no_weight_gradients():
        return torch.autograd.grad(logits.sum(), [img], create_graph=True)[0]
