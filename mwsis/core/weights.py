"""Loading weights with a report, and reading checkpoints safely: nothing is skipped in silence.

A checkpoint is read without executing anything it contains. Not here: translating names between detectors
(`mwsis.export`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mwsis.core.errors import WeightMismatchError, first_line

__all__ = ["Foreign", "LoadReport", "at_initial_length", "compare_weights", "load_weights", "read_checkpoint"]


@dataclass(frozen=True)
class LoadReport:
    """How a set of tensors fits a module, by name.

    Attributes:
        matched: names with the same shape on both sides.
        missing: names that the module has and the set lacks.
        unexpected: names that the set has and the module lacks.
        wrong_shape: (name, shape in the module, shape in the set).
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def fits(self) -> bool:
        """Whether every tensor has its counterpart."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.wrong_shape)
        clauses = [f"{len(self.matched)} of {total} tensors match"]
        if self.missing:
            clauses.append(f"{len(self.missing)} missing, first '{self.missing[0]}'")
        if self.unexpected:
            clauses.append(f"{len(self.unexpected)} unexpected, first '{self.unexpected[0]}'")
        if self.wrong_shape:
            name, expected, got = self.wrong_shape[0]
            clauses.append(f"{len(self.wrong_shape)} of another shape, first '{name}': expected {expected}, got {got}")
        return "; ".join(clauses)


def compare_weights(module: nn.Module, state: Mapping[str, Tensor]) -> LoadReport:
    """Return how a set of tensors fits a module, without loading it.

    Args:
        module: the module to be filled.
        state: tensors by the names of ``module.state_dict()``.

    Returns:
        The report, names in the order of the module and of ``state``.
    """
    own = module.state_dict()
    shared = [name for name in own if name in state]
    shapes = [(name, tuple(own[name].shape), tuple(state[name].shape)) for name in shared]
    return LoadReport(
        matched=tuple(name for name, expected, got in shapes if expected == got),
        missing=tuple(name for name in own if name not in state),
        unexpected=tuple(name for name in state if name not in own),
        wrong_shape=tuple(row for row in shapes if row[1] != row[2]),
    )


def load_weights(module: nn.Module, state: Mapping[str, Tensor], what: str) -> LoadReport:
    """Fill a module from tensors that must fit it exactly.

    Args:
        module: the module to fill, in place, on its own device.
        state: tensors by the names of ``module.state_dict()``.
        what: what is being loaded, in the user's words, usually a path; begins the error sentence.

    Returns:
        The report; every tensor is in ``matched``.

    Raises:
        WeightMismatchError: a tensor is missing, unexpected or of another shape; the module is left as it was.
    """
    report = compare_weights(module, state)
    if not report.fits:
        raise WeightMismatchError(f"{what}: {report}; load it into the configuration it was trained with")
    module.load_state_dict(dict(state), strict=True)
    return report


class Foreign:
    """In the place of an object of a class that is not known here; nothing of it is kept and nothing of it is run."""

    def __new__(cls, *_: Any, **__: Any) -> Foreign:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take anything."""

    def __setstate__(self, state: Any) -> None:
        """Keep nothing."""


def read_checkpoint(path: Path | str, keep_foreign_out: bool = False) -> dict[str, Any]:
    """Return the content of a checkpoint file, tensors on the CPU; no code in it is run.

    Args:
        path: a file written by ``torch.save``.
        keep_foreign_out: the file may hold objects of other programs beside the weights (logs, settings); each is
            `Foreign` in what is returned.

    Returns:
        The saved dictionary.

    Raises:
        WeightMismatchError: there is no such file, it is not a checkpoint, or it holds more than tensors and numbers.
    """
    try:
        known: list[Any] = []
        if keep_foreign_out:
            known = [(Foreign, name) for name in torch.serialization.get_unsafe_globals_in_checkpoint(path)]
        with torch.serialization.safe_globals(known):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightMismatchError(f"{path}: no such file; give the path of a checkpoint") from None
    except Exception as error:  # the unpickler raises anything at all on foreign bytes
        raise WeightMismatchError(
            f"{path}: expected a checkpoint of tensors and plain values, and reading it failed ({first_line(error)})"
        ) from error
    if not isinstance(content, dict):
        raise WeightMismatchError(f"{path}: expected a checkpoint dictionary, got {type(content).__name__}")
    return content


@torch.no_grad()
def at_initial_length(module: nn.Module, initial: Mapping[str, Tensor]) -> int:
    """Give each layer before a batch norm the length of its initial weights; what the network computes stays.

    The norm takes the length out again, but a step of the optimiser turns long weights by a smaller angle. Weights grow
    in training (four to six times in a short pretraining here), so with one learning rate a pretrained network learns
    more slowly than a fresh one.

    Args:
        module: with its weights loaded. A layer is one whose next sibling is a batch norm; running statistics follow.
        initial: the module's state before that.

    Returns:
        How many layers were changed. In evaluation values stay up to rounding; in training as far as the norm's ``eps``
        is small against the variance.

    Source: L2 regularisation versus batch norm (van Laarhoven, arXiv 1706.05350): the effective learning rate.
    """
    changed = 0
    for prefix, parent in module.named_modules():
        for (name, layer), (_, norm) in pairwise(parent.named_children()):
            weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
            if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or weight is None or weight.ndim < 2:
                continue
            before = initial[f"{prefix}.{name}.weight" if prefix else f"{name}.weight"]
            if torch.equal(before, weight):
                continue
            scale = before.norm() / weight.norm()
            weight.mul_(scale)
            if bias is not None:
                bias.mul_(scale)
            mean, variance = norm.running_mean, norm.running_var
            assert mean is not None
            assert variance is not None
            mean.mul_(scale)
            variance.copy_((scale.square() * (variance + norm.eps) - norm.eps).clamp(min=0))
            changed += 1
    return changed
