"""Entry point of ``python -m ci.codegen``."""

import sys

from ci.codegen.command import main

# worker processes import ci.codegen.command, for what they run cannot be in __main__
if __name__ == "__main__":
    sys.exit(main())
