"""Checks of the code that Triton compiles for GPUs, without a GPU: ``python -m ci.codegen``.

:func:`ci.codegen.builds.compiled` compiles a kernel of the library for a target, and
:class:`ci.codegen.facts.Facts` reads registers, spills, accesses and instructions from its PTX,
SASS or AMD assembly. :mod:`ci.codegen.checks` compares these with the limits that every kernel
has to keep; ``tests/gpu_code/test_codegen.py`` asserts them. README.md lists files and limits.
"""
