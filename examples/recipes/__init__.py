"""Recipes: techniques that go with an optimizer, each a short script: README.md lists them."""

RECIPES = (
    "update_rules",
    "schedules",
    "compare_optimizers",
    "regularization",
    "initialization",
    "clipping",
    "transfer_learning",
    "distillation",
    "training_loop",
)
