"""Optimizers, one module for each family; ``base.py`` has their common base class."""
