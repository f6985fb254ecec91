"""Run by `test_distributed.py` in two processes: each check compares what they find with one that has it all.

Process 0 holds 3 of 10 samples, process 1 the other 7.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

import torch
from torch import distributed, nn

from mwsis.core.distributed import (
    average_gradients,
    everywhere,
    gather,
    mean_over_processes,
    normaliser,
    num_processes,
    process_rank,
    share_batch_norms,
    share_state,
)
from mwsis.core.losses import dice


def mine(values):
    return values[:3] if process_rank() == 0 else values[3:]


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


def check_batch_norm_and_gradients():
    torch.manual_seed(0)
    inputs, targets = torch.randn(10, 4) * 3 + 50, torch.randn(10, 2)
    alone, shared = network(), network()
    loss = (alone(inputs) - targets).square().sum() / 10
    loss.backward()
    share_batch_norms(shared)
    part = (shared(mine(inputs)) - mine(targets)).square().sum()
    part = part / normaliser(torch.tensor(len(mine(inputs))))
    part.backward()
    average_gradients(shared.parameters())
    total = mean_over_processes({"loss": part})["loss"]
    torch.testing.assert_close(total, loss.detach(), rtol=1e-5, atol=1e-6)
    for one, other in zip(shared.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=2e-4, atol=2e-5)
    for one, other in zip(shared.buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert shared.state_dict().keys() == alone.state_dict().keys()


def check_image_batch_norm():
    torch.manual_seed(0)
    images = torch.randn(10, 3, 4, 5)
    alone, shared = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    module = nn.Sequential(shared)
    share_batch_norms(module)
    weight = torch.randn(10, 3, 4, 5)
    whole, part = images.clone().requires_grad_(), mine(images).clone().requires_grad_()
    (alone(whole) * weight).sum().backward()
    (module(part) * mine(weight)).sum().backward()
    torch.testing.assert_close(part.grad, mine(whole.grad), rtol=1e-4, atol=1e-5)
    module.eval()
    torch.testing.assert_close(module(images), alone.eval()(images), rtol=1e-4, atol=1e-5)


def check_normaliser_when_samples_are_fewer_than_processes():
    count = torch.tensor(1.0 if process_rank() == 0 else 0.0)
    assert float(normaliser(count)) == 0.5
    assert float(normaliser(torch.tensor(0))) == 0.5
    assert abs(float(normaliser(torch.tensor(0.0), at_least=1e-6)) - 5e-7) < 1e-12


def check_gradients_that_some_or_none_have():
    some, none, all_have = (nn.Parameter(torch.ones(2)) for _ in range(3))
    if process_rank() == 1:
        some.grad = torch.tensor([2.0, 4.0])
    all_have.grad = torch.full((2,), float(process_rank()))
    average_gradients([some, none, all_have])
    assert none.grad is None
    assert some.grad.tolist() == [1.0, 2.0]
    assert all_have.grad.tolist() == [0.5, 0.5]


def check_dice_of_the_whole_step():
    torch.manual_seed(0)
    logits, target = torch.randn(10, 6), (torch.rand(10, 6) > 0.5).float()
    whole, part = logits.clone().requires_grad_(), mine(logits).clone().requires_grad_()
    expected = dice(whole.sigmoid().reshape(1, -1), target.reshape(1, -1))[0]
    expected.backward()
    found = dice(part.sigmoid().reshape(1, -1), mine(target).reshape(1, -1), whole_step=True)[0]
    found.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(part.grad / num_processes(), mine(whole.grad))


def check_agreement():
    assert not everywhere(process_rank() == 0)
    assert everywhere(True)
    assert gather(f"of {process_rank()}") == ["of 0", "of 1"]
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.fill_(process_rank() + 1.0)
    share_state(module)
    assert bool((module.weight == 1).all())


def main(out):
    distributed.init_process_group("gloo")
    failures = {}
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            try:
                check()
                failures[name] = ""
            except Exception:
                failures[name] = traceback.format_exc()
    Path(out, f"{os.environ['RANK']}.json").write_text(json.dumps(failures))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
