"""FSDP2 with checkpoints: ``torchrun --nproc-per-node 2 examples/train_fsdp2.py --compare``.

``--resume`` goes on from the last checkpoint, on any number of processes; ``--help`` has the rest.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

# a script finds modules beside it, but not the package that it is in
spec = spec_from_file_location("examples", Path(__file__).with_name("__init__.py"))
assert spec is not None
sys.modules.setdefault("examples", module_from_spec(spec))

if __name__ == "__main__":
    from examples.fsdp2.main import main

    sys.exit(main())
