from __future__ import annotations

import torch
from torch import nn

from mwsis.core.ema import EMATeacher


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def train_a_little(module: nn.Module) -> None:
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.randn(16, 3, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    optimiser.step()


def test_starts_at_distance_zero():
    model = student()
    teacher = EMATeacher(model)
    ours, theirs = teacher.module.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(ours[name].data_ptr() != theirs[name].data_ptr() for name in ours)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_average_of_parameters_and_float_buffers_copy_of_counters():
    model = student()
    teacher = EMATeacher(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_a_little(model)
    teacher.update(model, decay=0.75)
    after = model.state_dict()
    for name, tensor in teacher.module.state_dict().items():
        if tensor.is_floating_point():
            assert not torch.equal(before[name], after[name])
            torch.testing.assert_close(tensor, 0.75 * before[name] + 0.25 * after[name])
        else:
            assert torch.equal(tensor, after[name])
    assert int(teacher.module.state_dict()["1.num_batches_tracked"]) == 1


def test_decay_zero_copies_exactly_and_one_stays():
    model = student()
    teacher = EMATeacher(model)
    first = teacher.module[0].weight.clone()
    train_a_little(model)
    teacher.update(model, decay=1.0)
    assert torch.equal(teacher.module[0].weight, first)
    teacher.update(model, decay=0.0)
    assert torch.equal(teacher.module[0].weight, model[0].weight)
    assert torch.equal(teacher.module[1].running_var, model[1].running_var)


def test_never_in_the_students_state_dict_and_no_gradient_reaches_it():
    model = student()
    names = set(model.state_dict())
    teacher = EMATeacher(model)
    teacher.module(torch.randn(4, 3)).sum()
    assert set(model.state_dict()) == names
    assert {name.removeprefix("module.") for name in teacher.state_dict()} == names
