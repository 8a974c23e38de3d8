"""The command line as ``python -m fused_optim``."""

import sys

from fused_optim.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
