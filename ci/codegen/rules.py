"""The update rules of the library by name, and the pairs of storage formats that are compiled."""

import importlib
import pkgutil

import fused_optim.rules
from fused_optim.rules.common import Rule
from fused_optim.testing import selection

RULE_MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.iter_modules(fused_optim.rules.__path__, "fused_optim.rules.")
]
RULES = {
    name.lower(): rule
    for module in RULE_MODULES
    for name, rule in vars(module).items()
    if isinstance(rule, Rule)
}
# the first pair is torch's
FORMAT_PAIRS = [
    {"weights": weights, "states": states} for weights, states in selection.FORMAT_PAIRS
]
