"""Triton's interpreter, mended where it doesn't compute what a GPU does in bfloat16.

Its float32 -> bfloat16 cast truncates, where every GPU rounds to nearest even; and its matrix product takes bfloat16's
bits for integers. It also prepares the language anew at every call of a device function, which is most of its time.
For tests and `gankern bench`; operators never need it.
"""

import numpy as np


def mend() -> None:
    """Make the interpreter round to bfloat16 and multiply matrices of it as GPUs do, and be quicker. Harmless to call
    twice."""
    import triton.language as tl
    from triton.runtime import interpreter

    if hasattr(interpreter._convert_float, "plain"):
        return
    plain, builder = interpreter._convert_float, interpreter.InterpreterBuilder
    plain_dot = builder.create_dot

    def convert(data, source, target, rounding_mode):
        if source == tl.float32 and target == tl.bfloat16:
            bits = np.ascontiguousarray(data).view(np.uint32)
            rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
            return np.where(np.isnan(data), np.uint16(0x7FC0), rounded)
        if source == tl.bfloat16 and target == tl.float32:
            return (np.ascontiguousarray(data).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return plain(data, source, target, rounding_mode)

    def widened(operand):
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return interpreter.TensorHandle(convert(operand.data, tl.bfloat16, tl.float32, None), tl.float32)

    def dot(self, a, b, *rest):
        return plain_dot(self, widened(a), widened(b), *rest)

    prepared, plain_prepare, plain_launch = set(), interpreter._patch_lang, interpreter.GridExecutor.__call__
    plain_tensor = interpreter._patch_lang_tensor

    def launch(self, *args, **kwargs):
        prepared.clear()  # the launch before has undone its own
        return plain_launch(self, *args, **kwargs)

    def prepare(fn):
        if id(fn.__globals__) in prepared:
            return interpreter._LangPatchScope()
        prepared.add(id(fn.__globals__))
        return plain_prepare(fn)

    def patch_tensor(tensor, scope):
        plain_tensor(tensor, scope)
        # Triton 3.6 calls int() of an array of one dimension, which numpy 2.4 refuses
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter.GridExecutor.__call__, interpreter._patch_lang = launch, prepare
    interpreter._patch_lang_tensor = patch_tensor
    convert.plain = plain
    interpreter._convert_float, builder.create_dot = convert, dot
