"""Writes snapshots in the layout of the StyleGAN2-ADA and StyleGAN3 repositories, with stand-in classes of ours."""

import contextlib
import pickle
import sys
import types

import numpy as np
import torch
from torch import nn

SOURCE = "raise AssertionError('the source text of a snapshot was executed')"
BUFFERS = ("resample_filter", "noise_const", "w_avg")


class EasyDict(dict):
    """A dict whose items are attributes."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def _reconstruct_persistent_obj(meta):
    raise AssertionError("a snapshot was unpickled")


class StandIn(nn.Module):
    """Pickles as a persistent class does: its source text, its name and its state."""

    def __init__(self, class_name="Module", **attributes):
        super().__init__()
        self._name = class_name
        self._init_args, self._init_kwargs = (), EasyDict(attributes)
        for name, value in attributes.items():
            setattr(self, name, value)

    def __reduce__(self):
        state = {k: v for k, v in self.__dict__.items() if k != "_name"}
        meta = EasyDict(type="class", version=6, module_src=SOURCE, class_name=self._name, state=state)
        return _reconstruct_persistent_obj, (meta,)


@contextlib.contextmanager
def stand_in_modules():
    """The names that the pickles refer to, while they are written."""
    modules = {name: types.ModuleType(name) for name in ("dnnlib", "dnnlib.util", "torch_utils")}
    modules["torch_utils.persistence"] = types.ModuleType("torch_utils.persistence")
    modules["dnnlib.util"].EasyDict = EasyDict
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    before = EasyDict.__module__, _reconstruct_persistent_obj.__module__
    EasyDict.__module__, _reconstruct_persistent_obj.__module__ = "dnnlib.util", "torch_utils.persistence"
    sys.modules |= modules
    try:
        yield
    finally:
        EasyDict.__module__, _reconstruct_persistent_obj.__module__ = before
        for name in modules:
            del sys.modules[name]


def _options(path: str, conv_clamp) -> dict:
    """Attributes as the original's layers have them; numpy numbers among them."""
    last = path.split(".")[-1]
    if last in ("conv0", "conv1", "conv", "fromrgb", "skip", "torgb"):
        gain = np.sqrt(2) if last != "torgb" else np.float64(0.1)
        return {"activation": "lrelu", "act_gain": gain, "conv_clamp": conv_clamp, "use_noise": True, "up": 1}
    if last.startswith("fc") and "mapping" in path:
        return {"activation": "lrelu", "weight_gain": 0.01 / np.sqrt(512), "bias_gain": 0.01}
    return {"use_fp16": False}


def module_tree(weights: dict, class_name: str, conv_clamp=None, **attributes) -> StandIn:
    """Stand-in modules that hold `weights` under their dotted names."""
    root = StandIn(class_name, **attributes)
    for dotted, value in weights.items():
        *path, name = dotted.split(".")
        module = root
        for depth, part in enumerate(path):
            if part not in module._modules:
                at = ".".join(path[: depth + 1])
                module.add_module(part, StandIn("SynthesisBlock", **_options(at, conv_clamp)))
            module = module._modules[part]
        value = torch.as_tensor(value).clone()
        if name in BUFFERS:
            module.register_buffer(name, value)
        else:
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return root


def snapshot(G=None, D=None, G_ema=None, conv_clamp=None, group_size=4, **more) -> dict:
    """The dict of a snapshot, from state dicts."""
    parts = {}
    for part, weights in (("G", G), ("D", D), ("G_ema", G_ema)):
        if weights is None:
            continue
        root = module_tree(weights, "Discriminator" if part == "D" else "Generator", conv_clamp)
        if part == "D":
            statistic = StandIn("MinibatchStdLayer", group_size=group_size, num_channels=1)
            root._modules["b4"].add_module("mbstd", statistic)
        parts[part] = root
    pipe = StandIn("AugmentPipe", xflip=1)
    pipe.register_buffer("p", torch.tensor(0.25))
    data = EasyDict(class_name="training.dataset.ImageFolderDataset", path="faces.zip", resolution=32, use_labels=False)
    return parts | {"training_set_kwargs": data, "augment_pipe": pipe} | more


def write_snapshot(path, protocol=4, **parts) -> None:
    """Writes a snapshot's pickle."""
    with stand_in_modules():
        path.write_bytes(pickle.dumps(snapshot(**parts), protocol=protocol))
