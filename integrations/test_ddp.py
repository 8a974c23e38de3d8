"""DistributedDataParallel in two processes; the example resumes."""

from pathlib import Path

import torch
from closeness import assert_as_close, assert_same_bits
from ddp import CLIP
from launch import ROOT, run_python


def test_same_as_torch_on_each_rank(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    program = Path(__file__).with_name("ddp_run.py")
    examples = str(ROOT / "examples" / "trainers")
    result = run_python(*launcher, program, tmp_path, PYTHONPATH=examples)
    assert len(list(tmp_path.glob("*.pt"))) == 2, result.stderr
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for (ours, theirs, exact), norm in ranks:
        assert_as_close(ours, theirs, exact)
        assert norm > CLIP  # the norm before clipping
    for first, second in zip(ranks[0][0][0], ranks[1][0][0], strict=True):
        assert_same_bits("parameter", first, second)
