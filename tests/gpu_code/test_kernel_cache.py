"""The kernel that is launched without Triton's JIT is the one that Triton would select.

So is the kernel on disk: its key has the source of the rule and the formats. Tried by hand: the
alignment left out of the cache key; a spec whose key has the names of its functions alone.
"""

import itertools

import pytest
import torch
import triton
from triton.compiler import ASTSource

from ci.codegen.builds import KERNELS, changed, make_bucket_key
from ci.codegen.rules import RULES
from fused_optim.backends.constexprs import constants
from fused_optim.backends.triton import GEOMETRY, OPTIONS, CachedKernel, resolve
from fused_optim.kernels.prepare import prepare

ARGUMENTS = list(itertools.product([True, False], [True, False], [1, 16, 17]))


def arguments(device, there, aligned, rows):
    """Return the arguments of the kernel prepare without a norm and without counters."""
    memory = torch.zeros(64, dtype=torch.float32, device=device)
    found_inf = memory[0 if aligned else 1 :][:1] if there else None
    groups = torch.zeros(rows, 2, dtype=torch.int32, device=device)
    hyper = torch.ones(1, 64, dtype=torch.float64, device=device)
    scalars = torch.zeros(rows, 64, device=device)
    return None, None, groups, hyper, None, found_inf, scalars, None, 0, rows


def test_the_kernel_is_tritons_choice(device, monkeypatch):
    rule = next(rule for rule in RULES.values() if not rule.scalar_state)
    fixed = {
        **resolve(constants(make_bucket_key(rule, torch.float32), GEOMETRY)["prepare"]),
        **OPTIONS,
    }
    ready, launched = CachedKernel(prepare, fixed), []
    with device.on():
        made = [arguments(device.torch, *which) for which in ARGUMENTS]
        for args in made:  # the first launch of each kind of arguments is Triton's
            ready.launch(1, *args)
        chosen = [prepare.warmup(*args, grid=(1,), **fixed) for args in made]
        assert len(set(map(id, chosen))) == len(ready.compiled) == 3
        monkeypatch.setattr(type(prepare), "run", lambda *args, **options: pytest.fail("by Triton"))
        kernel = type(chosen[0])
        original = kernel.__getitem__
        spy = lambda self, grid: launched.append(self) or original(self, grid)  # noqa: E731
        monkeypatch.setattr(kernel, "__getitem__", spy)
        for args in made:
            ready.launch(1, *args)
    assert launched == chosen
    assert all((args[6] != 0).any() for args in made)


def function(new):
    """Return one of two functions of one name, as before and after an update of the library."""
    if new:

        @triton.jit
        def found(a, b):
            return a + b

    else:

        @triton.jit
        def found(a, b):
            return a - b

    return found


@pytest.mark.parametrize(
    ("kernel", "field", "packed"),
    [
        ("update", "RULE", False),
        ("update", "LOADS", True),
        ("update", "STORES", True),
        ("reduce", "MAP_FN", False),
        ("reduce", "LOADS", True),
        ("prepare", "SCALARS_FN", False),
        ("finalize", "FINALIZE_FN", False),
    ],
)
def test_the_key_on_disk_has_the_source(kernel, field, packed):
    """Guard against a kernel of an older version of the library, from a cache that is kept."""
    kind, keys = make_bucket_key(RULES["lamb"], torch.float32), []
    for new in (False, False, True):
        given = (function(new),) if packed else function(new)
        constexprs = changed(kind, kernel, {field: given})
        keys.append(ASTSource(KERNELS[kernel], {}, constexprs).hash())
    assert keys[0] == keys[1] != keys[2]
