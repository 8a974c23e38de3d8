"""Selection of the kernels that the tests compile: rules, formats, targets and alignments."""

from collections.abc import Iterator
from itertools import product

from ci.codegen.builds import FORMATS, TARGETS, Build
from ci.codegen.rules import RULES

# failures of the past in ``python -m ci.codegen --all``: ptxas spilled to use fewer registers than
# allowed; the reader of AMD's assembly took the carry of an addition for an address, and overlooked
# the second instruction of a line; the most registers on AMD
FOUND = [
    Build("sgd_nesterov", "master-fp32", "sm_100"),
    Build("radam", "fp32-int8", "sm_80", False),
    Build("lars", "split-bf16", "sm_80", False, "reduce"),
    Build("lamb", "split-bf16", "sm_100", False, "reduce"),
    Build("adan", "master-fp32", "gfx90a"),
    Build("asgd", "fp64", "gfx1100"),
    Build("rmsprop_centered_momentum", "fp32-ema", "gfx1100"),
]


# targets of NVIDIA, and of AMD
MAKERS = [[name for name in TARGETS if name.startswith(maker)] for maker in ("sm_", "gfx")]


def _updates() -> Iterator[Build]:
    """Yield every rule for one of both makers, whose rules have every format."""
    formats = list(FORMATS)
    for i, rule in enumerate(RULES):
        turn, targets = i // 2, MAKERS[i % 2]
        yield Build(rule, formats[turn % len(formats)], targets[turn % len(targets)])


def _found(kernel: str, aligned: bool) -> list[Build]:
    return [one for one in FOUND if (one.kernel, one.aligned) == (kernel, aligned)]


def few_builds() -> list[Build]:
    """Return each rule, format and target once, and each function and target of other kernels."""
    formats, targets = list(FORMATS), list(TARGETS)
    found, formed = [], set()
    for i, rule in enumerate(RULES):
        target = targets[i % len(targets)]
        # the reader of AMD's assembly cannot follow some kernels of unaligned rows of Triton 3.5
        aligned = i % 2 == 0 or target.startswith("gfx")
        turn = Build(rule, formats[i % len(formats)], target, aligned)
        found.append(turn)
        if RULES[rule].form_scalars not in formed:  # rules share them
            formed.add(RULES[rule].form_scalars)
            found.append(turn._replace(format="fp32", kernel="prepare"))
        if RULES[rule].reduction is not None:
            found += [turn._replace(kernel=kernel) for kernel in ("reduce", "finalize")]
    for i, name in enumerate(("fp32", "bf16", "fp16", "fp64")):
        found.append(Build("adam", name, targets[3 * i % len(targets)], True, "norm"))
    return found


def aligned_builds(every: bool = False) -> list[Build]:
    """Return updates of aligned rows: ``every`` rule, format and target, or a selection."""
    if every:
        return [Build(*one) for one in product(RULES, FORMATS, TARGETS)]
    return sorted({*_updates(), *_found("update", aligned=True)})


def unaligned_builds(every: bool = False) -> list[Build]:
    """Return updates of rows that are only element-aligned: each format and target."""
    if every:
        return [build._replace(aligned=False) for build in aligned_builds(every)]
    rules, targets = list(RULES), list(TARGETS)
    found = [
        Build(rules[2 * i % len(rules)], name, targets[i % len(targets)], aligned=False)
        for i, name in enumerate(FORMATS)
    ]
    return sorted({*found, *_found("update", aligned=False)})


def _others() -> Iterator[Build]:
    """Yield a selection of every other kernel on every target."""
    targets = list(TARGETS)
    formed = {rule.form_scalars: name for name, rule in RULES.items()}  # rules share them
    for i, rule in enumerate(formed.values()):
        # alternate between targets of NVIDIA and AMD
        turn = i if i % 2 else i + len(targets) // 2
        yield Build(rule, "fp32", targets[turn % len(targets)], kernel="prepare")
    measured = [rule for rule in RULES if RULES[rule].reduction is not None]
    for i, rule in enumerate(measured):
        yield Build(rule, "bf16", targets[i], False, "reduce")
    for i, name in enumerate(FORMATS):  # there are more of them than targets
        yield Build(measured[i % len(measured)], name, targets[i % len(targets)], kernel="reduce")
    for rule, targets_of_maker in zip(measured, MAKERS, strict=False):
        yield Build(rule, "fp32", targets_of_maker[0], kernel="finalize")
    for targets in MAKERS:
        yield Build("adam", "fp64", targets[0], kernel="prepare")
    # the norm reads one column, in vectors of the widest column
    kinds = {name: Build("adam", name, "").kind for name in FORMATS}
    norms = {(kind.dtypes[kind.first[1]], kind.vector): name for name, kind in kinds.items()}
    for i, name in enumerate(norms.values()):
        for targets in MAKERS:
            yield Build("adam", name, targets[i % len(targets)], kernel="norm")
    yield from (Build("adam", "bf16", targets[-1], False, "norm") for targets in MAKERS)


def other_builds(every: bool = False) -> list[Build]:
    """Return a selection of the other kernels, or ``every`` kernel reduce."""
    if every:
        both = [*aligned_builds(every), *unaligned_builds(every)]
        sums = [one for one in both if RULES[one.rule].reduction is not None]
        return sorted({*_others(), *(one._replace(kernel="reduce") for one in sums)})
    return sorted({*_others(), *_found("reduce", aligned=False)})
