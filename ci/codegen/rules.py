"""The update rules of the library by name, and the pairs of storage formats that are compiled."""

import importlib
import pkgutil
from itertools import zip_longest

import fused_optim.rules
from fused_optim.formats.registry import STATES, WEIGHTS
from fused_optim.rules.common import Rule

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
# every format of weights and every format of states, in as few pairs as there are of either;
# the first pair is torch's
FORMAT_PAIRS = [
    {"weights": weights or "plain", "states": states or "param"}
    for weights, states in zip_longest(WEIGHTS, STATES)
]
