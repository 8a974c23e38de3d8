"""FSDP2 with checkpoints: ``torchrun --nproc-per-node 2 examples/train_fsdp2.py --compare``.

``--resume`` goes on from the last checkpoint, on any number of processes; ``--help`` has the rest.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from examples.fsdp2.main import main

if __name__ == "__main__":
    sys.exit(main())
