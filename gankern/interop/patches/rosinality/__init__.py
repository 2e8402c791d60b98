"""What rosinality's stylegan2-pytorch calls the package `op`; the attribute `upfirdn2d` is the function."""

import importlib

_fused_act = importlib.import_module(".fused_act", __name__)
FusedLeakyReLU, fused_leaky_relu = _fused_act.FusedLeakyReLU, _fused_act.fused_leaky_relu
upfirdn2d = importlib.import_module(".upfirdn2d", __name__).upfirdn2d
