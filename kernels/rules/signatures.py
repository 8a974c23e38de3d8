"""Hyperparameters and scalars of every update rule, read by field in torch and in Triton.

``<Rule>Hparams`` are the options of a parameter group that a rule needs, one float64 each.
``<Rule>Scalars`` are the numbers that its update takes for one parameter in one step, formed in
float64 from the hyperparameters and the step and rounded once to the dtype of the arithmetic.
Fields with a default are formed by the rule's reduction, from sums over the whole tensor, and come
last. Names: ``weight<i>`` is ``1 - beta<i>``; ``inv_bias_correction<i>`` is
``1 / (1 - beta<i> ** step)``, by which a moment estimate is corrected for its start at zero;
``decay`` is the share of the parameter that weight decay subtracts.
"""

from typing import Any, NamedTuple


class AdadeltaHparams(NamedTuple):
    """Hyperparameters of Adadelta."""

    lr: Any
    rho: Any
    eps: Any


class AdadeltaScalars(NamedTuple):
    """Scalars of :func:`adadelta`."""

    lr: Any
    weight: Any
    eps: Any


class AdagradHparams(NamedTuple):
    """Hyperparameters of Adagrad."""

    lr: Any
    lr_decay: Any
    eps: Any


class AdagradScalars(NamedTuple):
    """Scalars of :func:`adagrad`."""

    step_size: Any
    eps: Any


class AdamHparams(NamedTuple):
    """Hyperparameters of Adam, RAdam and StableAdamW; ``weight_decay`` is 0 unless decoupled."""

    lr: Any
    beta1: Any
    beta2: Any
    eps: Any
    weight_decay: Any


class SparseAdamHparams(NamedTuple):
    """Hyperparameters of SparseAdam."""

    lr: Any
    beta1: Any
    beta2: Any
    eps: Any


class AdamScalars(NamedTuple):
    """Scalars of :func:`adam` and :func:`adam_amsgrad`."""

    decay: Any
    beta1: Any
    weight1: Any
    weight2: Any
    step_size: Any
    inv_bias_correction2_sqrt: Any
    eps: Any


class AdamaxHparams(NamedTuple):
    """Hyperparameters of Adamax."""

    lr: Any
    beta1: Any
    beta2: Any
    eps: Any


class AdamaxScalars(NamedTuple):
    """Scalars of :func:`adamax`."""

    beta1: Any
    weight1: Any
    weight2: Any
    step_size: Any
    eps: Any


class AdanHparams(NamedTuple):
    """Hyperparameters of Adan; ``weight_decay`` is decoupled."""

    lr: Any
    beta1: Any
    beta2: Any
    beta3: Any
    eps: Any
    weight_decay: Any


class AdanScalars(NamedTuple):
    """Scalars of :func:`adan`."""

    is_first: Any
    decay: Any
    lr: Any
    beta1: Any
    weight1: Any
    beta2: Any
    weight2: Any
    weight3: Any
    inv_bias_correction1: Any
    diff_share: Any
    inv_bias_correction3_sqrt: Any
    eps: Any


class AdEMAMixHparams(NamedTuple):
    """Hyperparameters of AdEMAMix.

    ``alpha_warmup`` and ``beta3_warmup`` are in steps, 1 for none; ``inv_log1`` and ``inv_log3``
    are ``1 / ln(beta)`` of ``beta1`` and ``beta3``.
    """

    lr: Any
    beta1: Any
    beta2: Any
    beta3: Any
    alpha: Any
    eps: Any
    weight_decay: Any
    alpha_warmup: Any
    beta3_warmup: Any
    inv_log1: Any
    inv_log3: Any


class AdEMAMixScalars(NamedTuple):
    """Scalars of :func:`ademamix` and :func:`ademamix_slow`."""

    decay: Any
    lr: Any
    beta1: Any
    weight1: Any
    weight2: Any
    weight3: Any
    inv_bias_correction1: Any
    inv_bias_correction2_sqrt: Any
    slow_weight: Any
    eps: Any


class ASGDHparams(NamedTuple):
    """Hyperparameters of ASGD."""

    lr: Any
    lambd: Any
    alpha: Any
    t0: Any


class ASGDScalars(NamedTuple):
    """Scalars of :func:`asgd`."""

    decay: Any
    eta: Any
    mu: Any


class LAMBHparams(NamedTuple):
    """Hyperparameters of LAMB; ``adapt`` is 1 to scale by the trust ratio, else 0."""

    lr: Any
    beta1: Any
    beta2: Any
    eps: Any
    weight_decay: Any
    adapt: Any
    low: Any
    high: Any


class LAMBScalars(NamedTuple):
    """Scalars of :func:`lamb`; the last is formed from the norms."""

    weight1: Any
    weight2: Any
    inv_bias_correction1: Any
    inv_bias_correction2_sqrt: Any
    eps: Any
    weight_decay: Any
    lr: Any
    adapt: Any
    low: Any
    high: Any
    step_size: Any = None


class LARSHparams(NamedTuple):
    """Hyperparameters of LARS."""

    lr: Any
    momentum: Any
    weight_decay: Any
    trust_coefficient: Any
    eps: Any


class LARSScalars(NamedTuple):
    """Scalars of :func:`lars`; the last is formed from the norms."""

    lr: Any
    momentum: Any
    weight_decay: Any
    trust_coefficient: Any
    eps: Any
    rate: Any = None


class LionHparams(NamedTuple):
    """Hyperparameters of Lion; ``weight_decay`` is decoupled."""

    lr: Any
    beta1: Any
    beta2: Any
    weight_decay: Any


class LionScalars(NamedTuple):
    """Scalars of :func:`lion`."""

    decay: Any
    lr: Any
    beta1: Any
    weight1: Any
    weight2: Any


class NAdamHparams(NamedTuple):
    """Hyperparameters of NAdam; ``warmup`` is ``0.96 ** momentum_decay``."""

    lr: Any
    beta1: Any
    beta2: Any
    eps: Any
    warmup: Any
    weight_decay: Any


class NAdamScalars(NamedTuple):
    """Scalars of :func:`nadam`."""

    decay: Any
    beta1: Any
    weight1: Any
    weight2: Any
    lr: Any
    grad_share: Any
    avg_share: Any
    inv_bias_correction2_sqrt: Any
    eps: Any


class RAdamScalars(NamedTuple):
    """Scalars of :func:`radam`; ``rectified`` is 1 or 0."""

    decay: Any
    beta1: Any
    weight1: Any
    weight2: Any
    step_size: Any
    rectified: Any
    eps: Any


class RMSpropHparams(NamedTuple):
    """Hyperparameters of RMSprop."""

    lr: Any
    alpha: Any
    eps: Any
    momentum: Any


class RMSpropScalars(NamedTuple):
    """Scalars of :func:`rmsprop` and :func:`rmsprop_centered`."""

    lr: Any
    weight: Any
    eps: Any


class RMSpropMomentumScalars(NamedTuple):
    """Scalars of :func:`rmsprop_momentum` and :func:`rmsprop_centered_momentum`."""

    lr: Any
    weight: Any
    eps: Any
    momentum: Any


class ScheduleFreeSGDHparams(NamedTuple):
    """Hyperparameters of schedule-free SGD."""

    lr: Any
    momentum: Any
    warmup_steps: Any
    r: Any
    weight_lr_power: Any


class ScheduleFreeSGDScalars(NamedTuple):
    """Scalars of :func:`schedule_free_sgd`."""

    share: Any
    rate: Any
    y_rate: Any


class ScheduleFreeAdamWHparams(NamedTuple):
    """Hyperparameters of schedule-free AdamW."""

    lr: Any
    beta1: Any
    beta2: Any
    eps: Any
    weight_decay: Any
    warmup_steps: Any
    r: Any
    weight_lr_power: Any


class ScheduleFreeAdamWScalars(NamedTuple):
    """Scalars of :func:`schedule_free_adamw` and :func:`schedule_free_adamw_decay`."""

    share: Any
    rate: Any
    y_rate: Any
    weight2: Any
    eps: Any
    decay: Any


class SGDHparams(NamedTuple):
    """Hyperparameters of SGD."""

    lr: Any
    momentum: Any
    dampening: Any


class SGDScalars(NamedTuple):
    """Scalars of :func:`sgd`."""

    lr: Any


class MomentumScalars(NamedTuple):
    """Scalars of :func:`sgd_momentum` and :func:`sgd_nesterov`."""

    lr: Any
    momentum: Any
    weight: Any


class StableAdamWScalars(NamedTuple):
    """Scalars of :func:`stable_adamw`; the last two are formed from the mean square."""

    weight1: Any
    weight2: Any
    eps: Any
    eps_sq: Any
    lr: Any
    weight_decay: Any
    decay: Any = None
    step_size: Any = None
