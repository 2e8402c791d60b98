"""The package `basicsr.ops.fused_act`."""

import importlib

_module = importlib.import_module(".fused_act", __name__)
FusedLeakyReLU, fused_leaky_relu = _module.FusedLeakyReLU, _module.fused_leaky_relu
