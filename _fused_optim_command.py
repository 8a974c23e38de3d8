"""The command ``fused-optim``: a module of its own, which imports no torch.

Importing any module of ``fused_optim`` imports torch, which takes seconds: Ctrl-C may come then.
"""

import sys


def main() -> int:
    """Run the command line; return its exit code."""
    try:
        from fused_optim.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("fused-optim: stopped by Ctrl-C\n")
        return 130
