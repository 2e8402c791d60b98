"""gankern: a training engine for StyleGAN2, with its layers as operators that can be used one by one.

Importing the package compiles nothing, downloads nothing and needs no GPU.
"""

from gankern._version import __version__

__all__ = ["__version__"]
