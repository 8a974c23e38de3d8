"""Every update rule in plain torch, a page for each family: the definition of the kernels.

A rule maps ``(p, g, state, h)`` to ``(p, state)`` elementwise: parameter, gradient, the state in
the order of ``slots``, the scalars. ``<rule>_scalars`` maps the options of a group and the step
(counted from 1), all float64, to ``h``; so no kernel forms ``1 - beta`` in float32, which at
beta = 0.999 would lose five digits. In float32 these pages are the CPU backend, in float64 the
oracle of the tests. ``kernels/rules/`` has the same pages in Triton.

The bits are part of the contract: every operation rounds once, so no fused torch operation
(``addcmul``, ``lerp``, ``alpha=``) may stand here, and both pages keep one order. Functions that
torch takes from a library (``sqrt``, ``exp``, ``log``, ``**``) round by the processor: instead of
them there are the blocks of :mod:`~fused_optim.rules.common`.
"""
