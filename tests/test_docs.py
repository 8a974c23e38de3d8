"""The code of docs/distributed.md runs, in 4 processes, and clips by the norm of one process."""

import pytest
from helpers.page import PAGE, list_blocks
from helpers.processes import ROOT, torchrun


@pytest.mark.slow
def test_distributed_page_runs():
    blocks = list(list_blocks(PAGE.read_text()))
    result = torchrun(4, ROOT / "tests" / "helpers" / "page.py")
    assert result.returncode == 0, result.stderr
    printed = [line for line in result.stdout.splitlines() if line.startswith("line ")]
    assert len(printed) == len(blocks) == 18
    assert "False" not in result.stdout, result.stdout
    # DDP, FSDP2 twice, HSDP, tensor parallelism, FSDP x TP, pipeline stages, ZeRO, FSDP1
    assert result.stdout.count("norm equal: True") == 9
