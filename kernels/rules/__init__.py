"""Update rules in Triton: the same modules and functions as in fused_optim/rules/.

A rule maps blocks ``(p, g, state, h)`` to ``(p, state)``; ``<rule>_scalars`` maps the
hyperparameters of a group and the step, in float64, to ``h``. No function here loads, stores, masks
or casts.

The bits are part of the contract: every operation rounds once (no contraction, IEEE division and
square root), in the same order as the counterpart in torch.
"""
