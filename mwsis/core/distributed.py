"""What a training step needs to know of the other processes of a run; alone, every function here changes nothing.

Processes share a step by frames: each computes its own part, gradients are averaged. For that to equal one process with
all the frames, a loss divides by a count of the whole step (`normaliser`) and batch norms use the statistics of the
whole step (`share_batch_norms`). All processes must call these functions in the same order, so what is computed may
depend on the step but never on one process's frames (`everywhere`). Who starts the processes: `mwsis.training.launch`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from mwsis.core.errors import ConfigError

__all__ = [
    "average_gradients",
    "everywhere",
    "gather",
    "mean_over_processes",
    "normaliser",
    "num_processes",
    "process_rank",
    "share_batch_norms",
    "share_state",
    "sum_over_processes",
]

T = TypeVar("T")


def num_processes() -> int:
    """Return how many processes share a step; 1 outside a distributed run."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def process_rank() -> int:
    """Return this process's place among them, from 0; process 0 alone writes files."""
    return distributed.get_rank() if num_processes() > 1 else 0


def everywhere(flag: bool) -> bool:
    """Return whether ``flag`` holds on all processes."""
    if num_processes() == 1:
        return flag
    votes = torch.tensor(int(flag))
    distributed.all_reduce(votes, distributed.ReduceOp.MIN)
    return bool(votes)


def normaliser(count: Tensor, at_least: float = 1.0) -> Tensor:
    """Return what this process divides a sum over its samples by, to average over the samples of the whole step.

    Args:
        count: scalar, number (or total weight) of this process's samples.
        at_least: smallest count of the whole step; stands in for an empty one.

    Returns:
        Scalar float32: the count of the whole step, divided by the number of processes because gradients are averaged
        over them afterwards.

    Source: FCOS as in mmdetection, which clamps the mean over processes; clamped before the division here, so that few
    samples on many processes weigh as much as on one (*corrected*).
    """
    total = count.detach().float()
    if num_processes() == 1:
        return total.clamp(min=at_least)
    total = total.clone()
    distributed.all_reduce(total)
    return total.clamp(min=at_least) / num_processes()


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes; differentiable, each process receives the gradients of all."""
    return values if num_processes() == 1 else _Sum.apply(values)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        distributed.all_reduce(total)
        return total


def mean_over_processes(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the losses of the whole step from those of each process's part; for the log, without gradient."""
    if num_processes() == 1:
        return losses
    values = torch.stack([value.detach().float() for value in losses.values()])
    distributed.all_reduce(values)
    return dict(zip(losses, values / num_processes(), strict=True))


def gather(value: T) -> list[T]:
    """Return the value of every process, in order of rank; values are pickled."""
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * num_processes()
    distributed.all_gather_object(values, value)
    return values


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes, where a process without one counts as zero.

    A parameter without a gradient on any process keeps none, so its optimiser leaves it alone as a single process
    would. Called between the backward pass and clipping.
    """
    if num_processes() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    owners = torch.tensor([int(parameter.grad is not None) for parameter in trained])
    distributed.all_reduce(owners)
    shared = [parameter for parameter, num_owners in zip(trained, owners.tolist(), strict=True) if num_owners]
    if not shared:
        return
    parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in shared]
    flat = torch.cat([part.flatten() for part in parts])
    distributed.all_reduce(flat)
    flat /= num_processes()
    for parameter, part in zip(shared, torch.split(flat, [one.numel() for one in shared]), strict=True):
        parameter.grad = part.view_as(parameter)


@torch.no_grad()
def share_state(module: nn.Module) -> None:
    """Overwrite all parameters and buffers with those of process 0."""
    if num_processes() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            distributed.broadcast(tensor.data, 0)


def share_batch_norms(module: nn.Module) -> None:
    """Let the batch norms of a module use the statistics of the whole step; keys and values of its state stay.

    Raises:
        ConfigError: a batch norm is of a class of its own, whose forward pass is not known here.
    """
    if num_processes() == 1:
        return
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and not isinstance(part, _Shared):
            shared = {nn.BatchNorm1d: _SharedBatchNorm1d, nn.BatchNorm2d: _SharedBatchNorm2d}.get(type(part))
            if shared is None:
                raise ConfigError(
                    f"trainer.shared_norms: cannot share the statistics of {type(part).__name__} ({name}); set it to "
                    "false, or camera.norm to group or frozen"
                )
            part.__class__ = shared


class _Shared(nn.modules.batchnorm._BatchNorm):
    def forward(self, values: Tensor) -> Tensor:
        if not self.training or num_processes() == 1:
            return super().forward(values)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        normalised, mean, variance, count = _Normalise.apply(values, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
        return normalised


class _SharedBatchNorm1d(_Shared, nn.BatchNorm1d):
    """`nn.BatchNorm1d` over the samples of all processes."""


class _SharedBatchNorm2d(_Shared, nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the samples of all processes."""


class _Normalise(torch.autograd.Function):
    """Batch norm over the samples of all processes: one exchange forward, one backward; (N, C, ...) values.

    Means and squared deviations of the processes are joined by Chan's formula, weighted by their counts.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes = [axis for axis in range(values.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(values.ndim)]
        own = values.numel() // values.shape[1]
        mean = values.float().sum(axes) / max(own, 1)
        deviation = (values.float() - mean.view(shape)).square().sum(axes)
        table = torch.cat([mean, deviation, mean.new_full((1,), float(own))])
        tables = [torch.empty_like(table) for _ in range(num_processes())]
        distributed.all_gather(tables, table)
        means, deviations, counts = torch.split(torch.stack(tables), [len(mean), len(mean), 1], 1)
        count = counts.sum().clamp(min=1)
        mean = (means * counts).sum(0) / count
        variance = (deviations + counts * (means - mean).square()).sum(0) / count
        scale = (variance + eps).rsqrt()
        unit = (values.float() - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(values, weight, mean, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        normalised = unit * weight.view(shape) + bias.view(shape)
        return normalised.to(values.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        values, weight, mean, scale, count = ctx.saved_tensors
        axes = [axis for axis in range(values.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(values.ndim)]
        unit = (values.float() - mean.view(shape)) * scale.view(shape)
        grad_bias, grad_weight = grad.float().sum(axes), (grad.float() * unit).sum(axes)
        sums = torch.stack([grad_bias, grad_weight])
        distributed.all_reduce(sums)
        both = sums / count
        inner = grad.float() - both[0].view(shape) - unit * both[1].view(shape)
        return (inner * (weight * scale).view(shape)).to(values.dtype), grad_weight, grad_bias, None
