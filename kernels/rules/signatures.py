"""Hyperparameters and scalars of every update rule, read by field in torch and in Triton.

``<Rule>Hparams`` are the options of a parameter group that a rule needs, one float64 each.
``<Rule>Scalars`` are the numbers that its update takes for one parameter in one step, formed in
float64 from the hyperparameters and the step and rounded once to the dtype of the arithmetic.
Fields with a default are formed by the rule's reduction, from sums over the whole tensor, and come
last. Names: ``weight<i>`` is ``1 - beta<i>``; ``inv_bias_correction<i>`` is
``1 / (1 - beta<i> ** step)``, by which a moment estimate is corrected for its start at zero;
``decay`` is the share of the parameter that weight decay subtracts.
"""

from collections import namedtuple

AdadeltaHparams = namedtuple("AdadeltaHparams", "lr rho eps")
AdadeltaScalars = namedtuple("AdadeltaScalars", "lr weight eps")

AdagradHparams = namedtuple("AdagradHparams", "lr lr_decay eps")
AdagradScalars = namedtuple("AdagradScalars", "step_size eps")

# of Adam, RAdam and StableAdamW; weight_decay is 0 unless it is decoupled
AdamHparams = namedtuple("AdamHparams", "lr beta1 beta2 eps weight_decay")
SparseAdamHparams = namedtuple("SparseAdamHparams", "lr beta1 beta2 eps")
AdamScalars = namedtuple(
    "AdamScalars",
    "decay beta1 weight1 weight2 step_size inv_bias_correction2_sqrt eps",
)

AdamaxHparams = namedtuple("AdamaxHparams", "lr beta1 beta2 eps")
AdamaxScalars = namedtuple("AdamaxScalars", "beta1 weight1 weight2 step_size eps")

AdanHparams = namedtuple("AdanHparams", "lr beta1 beta2 beta3 eps weight_decay")
AdanScalars = namedtuple(
    "AdanScalars",
    "is_first decay lr beta1 weight1 beta2 weight2 weight3 inv_bias_correction1 diff_share "
    "inv_bias_correction3_sqrt eps",
)

# alpha_warmup and beta3_warmup: steps, 1 for none; inv_log<i>: 1 / ln(beta<i>)
AdEMAMixHparams = namedtuple(
    "AdEMAMixHparams",
    "lr beta1 beta2 beta3 alpha eps weight_decay alpha_warmup beta3_warmup inv_log1 inv_log3",
)
AdEMAMixScalars = namedtuple(
    "AdEMAMixScalars",
    "decay lr beta1 weight1 weight2 weight3 inv_bias_correction1 inv_bias_correction2_sqrt "
    "slow_weight eps",
)

ASGDHparams = namedtuple("ASGDHparams", "lr lambd alpha t0")
ASGDScalars = namedtuple("ASGDScalars", "decay eta mu")

# adapt: 1 to scale by the trust ratio, else 0; low, high: bounds of the norm of the weight
LAMBHparams = namedtuple("LAMBHparams", "lr beta1 beta2 eps weight_decay adapt low high")
# step_size depends on the norms
LAMBScalars = namedtuple(
    "LAMBScalars",
    "weight1 weight2 inv_bias_correction1 inv_bias_correction2_sqrt eps weight_decay lr adapt "
    "low high step_size",
    defaults=[None],
)

LARSHparams = namedtuple("LARSHparams", "lr momentum weight_decay trust_coefficient eps")
# rate depends on the norms
LARSScalars = namedtuple(
    "LARSScalars",
    "lr momentum weight_decay trust_coefficient eps rate",
    defaults=[None],
)

LionHparams = namedtuple("LionHparams", "lr beta1 beta2 weight_decay")
LionScalars = namedtuple("LionScalars", "decay lr beta1 weight1 weight2")

MuonHparams = namedtuple("MuonHparams", "momentum")
MuonScalars = namedtuple("MuonScalars", "momentum weight")
MuonApplyHparams = namedtuple("MuonApplyHparams", "lr weight_decay")
MuonApplyScalars = namedtuple("MuonApplyScalars", "decay lr")

# warmup is 0.96 ** momentum_decay
NAdamHparams = namedtuple("NAdamHparams", "lr beta1 beta2 eps warmup weight_decay")
NAdamScalars = namedtuple(
    "NAdamScalars",
    "decay beta1 weight1 weight2 lr grad_share avg_share inv_bias_correction2_sqrt eps",
)

# rectified is 1 or 0
RAdamScalars = namedtuple("RAdamScalars", "decay beta1 weight1 weight2 step_size rectified eps")

RMSpropHparams = namedtuple("RMSpropHparams", "lr alpha eps momentum")
RMSpropScalars = namedtuple("RMSpropScalars", "lr weight eps")
RMSpropMomentumScalars = namedtuple("RMSpropMomentumScalars", "lr weight eps momentum")

ScheduleFreeSGDHparams = namedtuple(
    "ScheduleFreeSGDHparams",
    "lr momentum warmup_steps r weight_lr_power",
)
ScheduleFreeSGDScalars = namedtuple("ScheduleFreeSGDScalars", "share rate y_rate")

ScheduleFreeAdamWHparams = namedtuple(
    "ScheduleFreeAdamWHparams",
    "lr beta1 beta2 eps weight_decay warmup_steps r weight_lr_power",
)
ScheduleFreeAdamWScalars = namedtuple(
    "ScheduleFreeAdamWScalars",
    "share rate y_rate weight2 eps decay",
)

SGDHparams = namedtuple("SGDHparams", "lr momentum dampening")
SGDScalars = namedtuple("SGDScalars", "lr")
# of sgd_momentum and sgd_nesterov
MomentumScalars = namedtuple("MomentumScalars", "lr momentum weight")

# decay and step_size depend on the mean square
StableAdamWScalars = namedtuple(
    "StableAdamWScalars",
    "weight1 weight2 eps eps_sq lr weight_decay decay step_size",
    defaults=[None, None],
)
