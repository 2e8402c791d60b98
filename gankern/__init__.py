"""gankern: a training engine for ProGAN and the StyleGAN family on fused GPU kernels.

Importing the package compiles nothing, downloads nothing and needs no GPU.
"""

from gankern._version import __version__

__all__ = ["__version__"]
