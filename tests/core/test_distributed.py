"""Two processes find what one finds; alone, nothing changes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mwsis.core import distributed
from mwsis.training.launch import run_processes

SCRIPT = Path(__file__).with_name("two_processes.py")
CHECKS = [line[4:-3] for line in SCRIPT.read_text().splitlines() if line.startswith("def check_")]


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    assert run_processes([sys.executable, str(SCRIPT), str(out)], 2) == 0
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_two_processes_equal_one(failures, check):
    assert [found[check] for found in failures] == ["", ""]


def test_alone_nothing_changes():
    assert (distributed.num_processes(), distributed.process_rank()) == (1, 0)
    assert distributed.gather(3) == [3]
    assert not distributed.everywhere(False)
    value, losses = torch.tensor([2.0], requires_grad=True), {"loss": torch.tensor(1.0)}
    assert distributed.sum_over_processes(value) is value
    assert distributed.mean_over_processes(losses) is losses
    assert float(distributed.normaliser(torch.tensor(0))) == 1
    assert float(distributed.normaliser(torch.tensor(7))) == 7
    module = nn.Sequential(nn.BatchNorm1d(2))
    distributed.share_batch_norms(module)
    assert type(module[0]) is nn.BatchNorm1d
    module[0].weight.grad = torch.ones(2)
    distributed.average_gradients(module.parameters())
    assert module[0].bias.grad is None
