"""Update rules in plain torch, one module for each family: the reference for the kernels.

A rule maps ``(p, g, state, h)`` to ``(p, state)`` elementwise: parameter, gradient, the state in
the order of ``Rule.state_keys``, the scalars. ``<rule>_scalars`` maps the hyperparameters of a
group and the step (counted from 1), all float64, to ``h``; so no kernel forms ``1 - beta`` in
float32, which at beta = 0.999 would lose five digits. In float32 these modules are the reference
backend, in float64 the expected values of the tests. ``kernels/rules/`` has the same modules in
Triton.

The bits are part of the contract: every operation rounds once, so no fused torch operation
(``addcmul``, ``lerp``, ``alpha=``) may be used here, and both modules compute in the same order.
The rounding of ``sqrt``, ``exp``, ``log`` and ``**`` in torch depends on the processor: use the
functions of :mod:`~fused_optim.rules.common` instead.
"""
