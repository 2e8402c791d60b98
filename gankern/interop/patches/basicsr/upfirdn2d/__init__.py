"""The package `basicsr.ops.upfirdn2d`, whose attribute `upfirdn2d` is the function."""

import importlib

upfirdn2d = importlib.import_module(".upfirdn2d", __name__).upfirdn2d
