"""Checks of numerics: one policy of closeness for the library's tests, the command and users."""

from fused_optim.testing.closeness import assert_as_accurate, assert_same_bits
from fused_optim.testing.equivalence import assert_equivalent

__all__ = ["assert_as_accurate", "assert_equivalent", "assert_same_bits"]
