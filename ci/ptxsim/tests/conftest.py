"""Settings of the simulator's tests, which compile kernels and cannot run in the interpreter."""

import os

if os.environ.get("TRITON_INTERPRET") == "1":  # set by tests/conftest.py for --interpret
    collect_ignore_glob = ["test_*.py"]

# Triton 3.9 warns where a kernel does not choose whether to contract, as some kernels here
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
