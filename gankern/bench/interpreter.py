"""Triton's interpreter, mended: its float32 -> bfloat16 cast truncates, where every GPU rounds to nearest even.

Without this, numbers from the interpreter say nothing about a kernel's accuracy in bfloat16. For tests and
`gankern bench`; operators never need it.
"""

import numpy as np


def round_to_nearest() -> None:
    """Make the interpreter's float32 -> bfloat16 conversion round as GPUs do. Harmless to call twice."""
    import triton.language as tl
    from triton.runtime import interpreter

    plain = getattr(interpreter._convert_float, "plain", interpreter._convert_float)

    def convert(data, source, target, rounding_mode):
        if source == tl.float32 and target == tl.bfloat16:
            bits = np.ascontiguousarray(data).view(np.uint32)
            rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
            return np.where(np.isnan(data), np.uint16(0x7FC0), rounded)
        if source == tl.bfloat16 and target == tl.float32:
            return (np.ascontiguousarray(data).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return plain(data, source, target, rounding_mode)

    convert.plain = plain
    interpreter._convert_float = convert
