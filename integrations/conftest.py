"""The surroundings of every test of a trainer: one thread, no network, a folder of its own."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """Set torch to one thread, as two tests share the cores, and work in a folder of the test."""
    torch.set_num_threads(1)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
