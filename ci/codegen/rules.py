"""The update rules of the library by name, and the pairs of storage formats that are compiled."""

import importlib
import pkgutil

import fused_optim.rules
from fused_optim.formats.registry import STATES, WEIGHTS
from fused_optim.rules.common import Rule


def find_rules() -> dict[str, Rule]:
    """Return every rule in the modules of ``fused_optim.rules``, by its name in lower case."""
    package = fused_optim.rules
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    return {
        name.lower(): rule
        for module in modules
        for name, rule in vars(module).items()
        if isinstance(rule, Rule)
    }


RULES = find_rules()
# every format of weights and every format of states, in as few pairs as there are of either;
# the first pair is torch's
FORMAT_PAIRS = [
    {"weights": list(WEIGHTS)[i % len(WEIGHTS)], "states": list(STATES)[i % len(STATES)]}
    for i in range(max(len(WEIGHTS), len(STATES)))
]
