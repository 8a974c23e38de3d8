"""All recipes: ``python -m examples.recipes``, with ``--out`` and ``--seed``."""

import sys
from importlib import import_module

from . import RECIPES

for name in RECIPES:
    import_module(f"{__package__}.{name}").main(sys.argv[1:])
