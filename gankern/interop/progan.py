"""ProGAN networks from the original implementation's variables: a dict of arrays by its names and in its layouts.

Convolutions are [kh, kw, in, out] (fused upsampling ones [kh, kw, out, in]), dense layers [in, out]; all raw, before
the run-time scale. Every dimension is inferred.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from gankern.errors import InputError
from gankern.models.progan import Discriminator, Generator

Variables = Mapping[str, Any]


def _array(variables: Variables, name: str, dims: int) -> np.ndarray:
    if name not in variables:
        raise InputError(f"variables lack {name}: not a ProGAN network under the original names")
    found = np.asarray(variables[name])
    if found.ndim != dims:
        raise InputError(f"{name} has shape {found.shape}, expected {dims} dimensions")
    return found


def _resolution(variables: Variables, pattern: str) -> int:
    """The highest resolution R of a name "RxR/..."."""
    found = [int(match[1]) for name in variables if (match := re.fullmatch(pattern, name))]
    return max(found, default=4)


def _base_and_max(channels: dict[int, int]) -> tuple[int, int]:
    """The channel_base and channel_max with which min(2·base/r, max) gives these channels at each resolution r (2: what
    the last stage is followed by)."""
    top = max(channels.values())
    base = max(c * r // 2 for r, c in channels.items())
    if any(min(base * 2 // r, top) != c for r, c in channels.items()):
        raise InputError(f"channels {channels} don't follow min(channel_base / 2^stage, channel_max)")
    return base, top


def _fused_from(variables: Variables, fused: bool, name: str, plain: str, resolution: int) -> int | None:
    """The lowest resolution whose resampling convolution has the fused name; `fused` decides where there is none."""
    at = [r for r in (2**i for i in range(3, resolution.bit_length())) if f"{r}x{r}/{name}/weight" in variables]
    missing = [r for r in at if fused is False]
    if missing:
        raise InputError(f"fused_scale=False, but {missing[0]}x{missing[0]}/{name}/weight is a fused layer's")
    if not at:
        if fused and resolution > 4:
            raise InputError(f"variables lack 8x8/{name}/weight: pass fused_scale=False for a network with {plain}")
        return None
    return min(at)


def _fill(network: nn.Module, state: dict[str, np.ndarray]) -> nn.Module:
    own = network.state_dict()
    for name, want in own.items():
        if tuple(state[name].shape) != tuple(want.shape):
            raise InputError(f"{name} would have shape {state[name].shape}, expected {tuple(want.shape)}")
    network.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    return network


def _conv(variables: Variables, name: str, axes: tuple[int, int, int, int] = (3, 2, 0, 1)) -> dict[str, np.ndarray]:
    """weight [O, I, kh, kw] and bias."""
    weight = _array(variables, f"{name}/weight", 4).transpose(axes)
    return {"weight": np.ascontiguousarray(weight), "bias": _array(variables, f"{name}/bias", 1)}


def _dense(variables: Variables, name: str) -> dict[str, np.ndarray]:
    weight = np.ascontiguousarray(_array(variables, f"{name}/weight", 2).T)
    return {"weight": weight, "bias": _array(variables, f"{name}/bias", 1)}


def _flat(layers: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {f"{layer}.{name}": array for layer, entry in layers.items() for name, array in entry.items()}


def progan_generator_from_tf(variables: Variables, fused_scale: bool = True, label_size: int = 0) -> Generator:
    """A generator from the original's variables ("4x4/Dense/weight", "8x8/Conv0_up/weight", "ToRGB_lod0/weight", ...).

    `fused_scale`: as the network was built; without it the layers are called Conv0. `label_size`: how many of the first
    layer's inputs are labels. Raises InputError for missing variables and shapes that make no ProGAN.
    """
    resolution = _resolution(variables, r"(\d+)x\1/Conv1/weight")
    fused_from = _fused_from(variables, fused_scale, "Conv0_up", "Conv0", resolution)
    layers = {"b4.dense": _dense(variables, "4x4/Dense"), "b4.conv": _conv(variables, "4x4/Conv")}
    channels = {4: layers["b4.conv"]["weight"].shape[0]}
    top = resolution.bit_length() - 3
    for stage in range(top + 1):
        r = 4 << stage
        layers[f"b{r}.torgb"] = _conv(variables, f"ToRGB_lod{top - stage}")
        if r == 4:
            continue
        fused = fused_from is not None and r >= fused_from
        name = f"{r}x{r}/Conv0_up" if fused else f"{r}x{r}/Conv0"
        layers[f"b{r}.conv0"] = _conv(variables, name, (2, 3, 0, 1) if fused else (3, 2, 0, 1))
        layers[f"b{r}.conv1"] = _conv(variables, f"{r}x{r}/Conv1")
        channels[r] = layers[f"b{r}.conv1"]["weight"].shape[0]
    base, most = _base_and_max(channels)
    inputs = layers["b4.dense"]["weight"].shape[1]
    if not 0 <= label_size < inputs:
        raise InputError(f"label_size={label_size}, expected less than the first layer's {inputs} inputs")
    sizes = {"z_dim": inputs - label_size, "c_dim": label_size, "img_resolution": resolution}
    sizes |= {"img_channels": len(layers["b4.torgb"]["bias"]), "channel_base": base, "channel_max": most}
    return _fill(Generator(**sizes, fused_from=fused_from), _flat(layers))


def progan_discriminator_from_tf(variables: Variables, fused_scale: bool = True) -> Discriminator:
    """A discriminator from the original's variables ("FromRGB_lod0/weight", "8x8/Conv1_down/weight", ...); whether it
    has the minibatch standard deviation and labels is inferred. Errors as in the generator."""
    resolution = _resolution(variables, r"(\d+)x\1/Conv0/weight")
    fused_from = _fused_from(variables, fused_scale, "Conv1_down", "Conv1", resolution)
    dense = {f"b4.dense{i}": _dense(variables, f"4x4/Dense{i}") for i in (0, 1)}
    layers: dict[str, dict[str, np.ndarray]] = {"b4.conv": _conv(variables, "4x4/Conv")} | dense
    wide, joined = layers["b4.conv"]["weight"].shape[:2]
    channels = {2: layers["b4.dense0"]["weight"].shape[0], 4: wide}
    top = resolution.bit_length() - 3
    for stage in range(top + 1):
        r = 4 << stage
        layers[f"b{r}.fromrgb"] = _conv(variables, f"FromRGB_lod{top - stage}")
        if r == 4:
            continue
        down = "Conv1_down" if fused_from is not None and r >= fused_from else "Conv1"
        layers[f"b{r}.conv0"] = _conv(variables, f"{r}x{r}/Conv0")
        layers[f"b{r}.conv1"] = _conv(variables, f"{r}x{r}/{down}")
        channels[r] = layers[f"b{r}.conv0"]["weight"].shape[0]
    base, most = _base_and_max(channels)
    sizes = {"c_dim": len(layers["b4.dense1"]["bias"]) - 1, "img_resolution": resolution}
    sizes |= {"img_channels": layers["b4.fromrgb"]["weight"].shape[1], "channel_base": base, "channel_max": most}
    group = {"group_size": 4 if joined == wide + 1 else 0}
    return _fill(Discriminator(**sizes, fused_from=fused_from, **group), _flat(layers))
