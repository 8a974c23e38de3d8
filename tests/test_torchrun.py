"""Programs for torchrun: docs/distributed.md, and the examples of DDP and of FSDP2.

The example of FSDP2 resumes on any number of processes, and survives a kill while it saves. Three
runs in one directory make one curve: 3 processes, of which one is killed while it writes its data;
1 process, which is killed while it writes the metadata; and 2 processes to the end, which compare
it. It must be the curve of torch.optim.AdamW with clip_grad_norm_ in one process, but for the
rounding that ``examples/gpt/verdict.py`` measures (some 1e-6 of a loss of 3 to 6).

Faults tried by hand, each found: no optimizer in the checkpoint; no schedule; ``latest`` written
before the data; the same share of the batch on every process; another bound of the norm.
"""

import json
import re
from signal import SIGKILL

import pytest
import torch
import torch.distributed as dist
from helpers.page import PAGE, list_blocks
from helpers.processes import ROOT, start_ranks
from torch.distributed.checkpoint import CheckpointException, FileSystemWriter

from examples.fsdp2 import checkpoints, main

STEPS = 8


def run_killed(run, count, rank, call, *options):
    """Run the example until the process ``rank`` is killed in its second save."""
    script = ROOT / "tests" / "helpers" / "killed_save.py"
    result = run(count, script, rank, call, *options)
    assert result.returncodes[rank] == -SIGKILL, result.stderr


def check_fsdp2(run, folder):
    """The curve goes on after kills and on other numbers of processes."""
    options = ("--out", folder, "--save-every", 2)
    run_killed(run, 3, 1, "write_data", "--steps", STEPS, *options)
    assert checkpoints.find_latest(folder).step == 2
    assert len(list(folder.glob("step-4-*"))) == 1
    run_killed(run, 1, 0, "finish", "--resume", *options)
    assert checkpoints.find_latest(folder).step == 4
    assert len(list(folder.glob("step-4-*"))) == 1  # and not what the first run left
    result = run(2, ROOT / "examples" / "train_fsdp2.py", "--resume", "--compare", *options)
    assert result.returncodes == [0, 0], result.stderr
    assert checkpoints.find_latest(folder).step == 6
    assert len(json.loads((folder / "losses.json").read_text())) == STEPS
    losses, compared = result.stdout.splitlines()
    assert re.fullmatch(r"2 processes: loss 6\.\d{3} to \d\.\d{3}", losses)
    found = re.fullmatch("one process: equal within rounding, (.*) apart, (.*) allowed", compared)
    assert float(found[1]) <= float(found[2]) < 1e-3


def check_ddp(run):
    result = run(2, ROOT / "examples" / "ddp.py")
    assert result.returncodes == [0, 0], result.stderr
    assert result.stdout == "2 processes equal one within 1e-5: True\n"


def check_page(run):
    """The code of docs/distributed.md, in 4 processes, clips by the norm of one process."""
    blocks = list(list_blocks(PAGE.read_text()))
    result = run(4, ROOT / "tests" / "helpers" / "page.py")
    assert result.returncodes == [0] * 4, result.stderr
    printed = [line for line in result.stdout.splitlines() if line.startswith("line ")]
    assert len(printed) == len(blocks) == 18
    assert "False" not in result.stdout, result.stdout
    # DDP, FSDP2 twice, HSDP, tensor parallelism, FSDP x TP, pipeline stages, ZeRO, FSDP1
    assert result.stdout.count("norm equal: True") == 9


@pytest.mark.slow
def test_programs_in_several_processes(tmp_path):
    """One test, as the processes share imports of seconds."""
    with start_ranks() as run:
        check_fsdp2(run, tmp_path)
        check_ddp(run)
        check_page(run)


@pytest.fixture
def one_process(tmp_path):
    """Make this process a process group of its own."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_another_training_in_the_folder_leaves_the_checkpoint_until_it_has_saved(
    tmp_path, monkeypatch
):
    def stop(*_, **__):
        raise OSError

    folder, loaded = tmp_path / "out", {"x": torch.zeros(3)}
    checkpoints.save(folder, 2, STEPS, {"x": torch.ones(3)})
    monkeypatch.setattr(FileSystemWriter, "finish", stop)
    with pytest.raises(CheckpointException):
        checkpoints.save(folder, 2, STEPS, {"x": torch.full((3,), 2.0)})
    monkeypatch.undo()
    checkpoints.load(checkpoints.find_latest(folder), loaded)
    assert loaded["x"].tolist() == [1, 1, 1]
    checkpoints.save(folder, 2, STEPS, {"x": torch.full((3,), 3.0)})
    checkpoints.load(checkpoints.find_latest(folder), loaded)
    assert loaded["x"].tolist() == [3, 3, 3]
    assert len(list(folder.glob("step-2-*"))) == 1


def test_without_a_checkpoint_resume_says_so(tmp_path):
    with pytest.raises(SystemExit, match="no checkpoint in"):
        main.main(["--resume", "--out", str(tmp_path)])
    (tmp_path / "latest").write_text("step-")
    with pytest.raises(SystemExit, match="name of a checkpoint"):
        main.main(["--resume", "--out", str(tmp_path)])
