"""What rosinality's generator and discriminator compute from their state dicts, in plain torch: scaled weights, a
convolution for each sample, transposed convolution then blur. Written from the papers, to check the names against."""

import math

import torch
from torch.nn import functional as F


def linear(sd, name, x, lr=1.0, act=False):
    weight, bias = sd[f"{name}.weight"], sd[f"{name}.bias"]
    y = F.linear(x, weight * (lr / math.sqrt(weight.shape[1])), bias * lr)
    return F.leaky_relu(y, 0.2) * math.sqrt(2) if act else y


def blur(x, kernel, up=1, down=1, pad=(0, 0)):
    """Zeros between the pixels, padding, true convolution with the kernel, every down-th pixel."""
    n, c, h, w = x.shape
    if up > 1:
        wide = x.new_zeros(n, c, h * up, w * up)
        wide[:, :, ::up, ::up] = x
        x = wide
    x = F.pad(x, (pad[0], pad[1], pad[0], pad[1]))
    weight = kernel.flip([0, 1])[None, None].expand(x.shape[1], 1, *kernel.shape)
    return F.conv2d(x, weight, groups=x.shape[1])[:, :, ::down, ::down]


def modulated(sd, name, x, w, demodulate=True, up=False):
    weight = sd[f"{name}.conv.weight"][0]
    scale = 1 / math.sqrt(weight[0].numel())
    style = linear(sd, f"{name}.conv.modulation", w)
    out = []
    for image, s in zip(x, style, strict=True):
        own = weight * scale * s[:, None, None]
        if demodulate:
            own = own * (own.square().sum([1, 2, 3], keepdim=True) + 1e-8).rsqrt()
        if up:
            out.append(F.conv_transpose2d(image[None], own.transpose(0, 1), stride=2))
        else:
            out.append(F.conv2d(image[None], own, padding=weight.shape[-1] // 2))
    y = torch.cat(out)
    return blur(y, sd[f"{name}.conv.blur.kernel"], pad=(1, 1)) if up else y


def styled(sd, name, x, w, noise, up=False):
    y = modulated(sd, name, x, w, up=up) + sd[f"{name}.noise.weight"] * noise
    return F.leaky_relu(y + sd[f"{name}.activate.bias"][:, None, None], 0.2) * math.sqrt(2)


def generate(sd, z):
    """Images of z with the noise maps that are in the state dict."""
    w = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
    for i in range(sum(name.startswith("style.") and name.endswith("weight") for name in sd)):
        w = linear(sd, f"style.{i + 1}", w, 0.01, act=True)
    x = sd["input.input"].repeat(len(z), 1, 1, 1)
    x = styled(sd, "conv1", x, w, sd["noises.noise_0"])
    image = modulated(sd, "to_rgb1", x, w, demodulate=False) + sd["to_rgb1.bias"]
    for i in range(sum(name.startswith("to_rgbs.") and name.endswith(".bias") and "mod" not in name for name in sd)):
        x = styled(sd, f"convs.{2 * i}", x, w, sd[f"noises.noise_{2 * i + 1}"], up=True)
        x = styled(sd, f"convs.{2 * i + 1}", x, w, sd[f"noises.noise_{2 * i + 2}"])
        image = blur(image, sd[f"to_rgbs.{i}.upsample.kernel"], up=2, pad=(2, 1))
        image = image + modulated(sd, f"to_rgbs.{i}", x, w, demodulate=False) + sd[f"to_rgbs.{i}.bias"]
    return image


def _conv(sd, weight, x, stride=1, padding=0):
    return F.conv2d(x, sd[weight] / math.sqrt(sd[weight][0].numel()), stride=stride, padding=padding)


def _act(sd, bias, x):
    return F.leaky_relu(x + sd[bias][:, None, None], 0.2) * math.sqrt(2)


def discriminate(sd, x, group=4):
    """Logits of images."""
    x = _act(sd, "convs.0.1.bias", _conv(sd, "convs.0.0.weight", x))
    for i in range(1, 1 + sum(name.endswith("skip.1.weight") for name in sd)):
        y = _act(sd, f"convs.{i}.conv1.1.bias", _conv(sd, f"convs.{i}.conv1.0.weight", x, padding=1))
        y = blur(y, sd[f"convs.{i}.conv2.0.kernel"], pad=(2, 2))
        y = _act(sd, f"convs.{i}.conv2.2.bias", _conv(sd, f"convs.{i}.conv2.1.weight", y, stride=2))
        skip = _conv(sd, f"convs.{i}.skip.1.weight", blur(x, sd[f"convs.{i}.skip.0.kernel"], pad=(1, 1)), stride=2)
        x = (y + skip) / math.sqrt(2)
    n, c, h, w = x.shape
    grouped = x.view(group, n // group, c, h, w)
    deviation = (grouped.var(0, unbiased=False) + 1e-8).sqrt().mean([1, 2, 3])
    x = torch.cat([x, deviation.repeat(group)[:, None, None, None].expand(n, 1, h, w)], 1)
    x = _act(sd, "final_conv.1.bias", _conv(sd, "final_conv.0.weight", x, padding=1))
    return linear(sd, "final_linear.1", linear(sd, "final_linear.0", x.flatten(1), act=True))
