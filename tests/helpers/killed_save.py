"""Run examples/train_fsdp2.py in a process that is killed while it saves: FILE RANK CALL ...

The process of rank RANK gets SIGKILL in its second save, when it enters CALL of the writer of
``torch.distributed.checkpoint``, after half the file that CALL would write. The other arguments are
those of the example.
"""

import os
import signal
import sys
from pathlib import Path

from torch.distributed.checkpoint import FileSystemWriter

from examples.fsdp2.main import main


def kill_in_second(call, path_of):
    """Replace a method of the writer by one that kills this process in its second call."""
    original = getattr(FileSystemWriter, call)
    calls = []

    def replaced(self, *args, **named):
        calls.append(call)
        if len(calls) == 1:
            return original(self, *args, **named)
        path = Path(self.path) / path_of
        path.write_bytes(b"half of a file")
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(FileSystemWriter, call, replaced)


rank, call, *arguments = sys.argv[1:]
if os.environ["RANK"] == rank:
    kill_in_second(call, {"write_data": f"__{rank}_0.distcp", "finish": ".metadata.tmp"}[call])
sys.exit(main(arguments))
