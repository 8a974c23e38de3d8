"""Patches of Triton's interpreter, so that it computes the bits of the compiled code.

The interpreter (3.4 to 3.9) truncates float32 to bfloat16 and misreads denormals; the compiler
emits ``cvt.rn``, which the tests of the compiled kernels execute. Before 3.7 it takes the bounds of
a loop from arrays of one element in a way that numpy 2.4 refuses.
"""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Return the bits of float32 rounded to bfloat16, to nearest even, as uint16."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0 | bits >> 16, rounded).astype(np.uint16)


def install() -> None:
    """Patch casts to and from bfloat16 and loop bounds; silence numpy's warnings of Inf and NaN."""
    np.seterr(all="ignore")
    _repair_casts()
    _repair_indices()


def _repair_casts() -> None:
    """Replace the casts between float32 and bfloat16."""
    cast = interpreter.InterpreterBuilder.cast_impl

    def cast_impl(self, src, dst_type):
        pair = src.dtype.scalar, dst_type.scalar
        if pair == (tl.float32, tl.bfloat16):
            return interpreter.TensorHandle(to_bfloat16(src.data), tl.bfloat16)
        if pair == (tl.bfloat16, tl.float32):
            wide = (src.data.astype(np.uint32) << 16).view(np.float32)
            return interpreter.TensorHandle(wide, tl.float32)
        return cast(self, src, dst_type)

    interpreter.InterpreterBuilder.cast_impl = cast_impl


def _repair_indices() -> None:
    """Make loop bounds convertible to integers."""
    patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor, *scope):
        """Patch the class ``tensor`` as the interpreter does, then its ``__index__``."""
        patch(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    interpreter._patch_lang_tensor = patch_lang_tensor
