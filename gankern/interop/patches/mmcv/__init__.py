"""What `mmcv.ops` holds for StyleGAN: the package itself where mmcv's compiled operators are missing."""

import importlib


def _take(module: str, *names: str) -> None:
    found = importlib.import_module(f".{module}", __name__)
    globals().update({name: getattr(found, name) for name in names})


_take("bias_act", "bias_act")
_take("conv2d_gradfix", "conv2d", "conv_transpose2d")
_take("filtered_lrelu", "filtered_lrelu")
_take("fused_bias_leakyrelu", "FusedBiasLeakyReLU", "fused_bias_leakyrelu")
_take("upfirdn2d", "filter2d", "upfirdn2d", "upsample2d", "downsample2d")
