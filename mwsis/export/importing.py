"""Checkpoints of other frameworks' detectors as weights of ours, with a report of every tensor.

Which of our networks a checkpoint is for is told by its keys: the target (`targets.py`) whose names it has. Not here:
the command (`tools/import_weights.py`) and what training does with the file (`lidar.start_weights`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from mwsis.core.errors import WeightMismatchError
from mwsis.core.weights import LoadReport
from mwsis.export.adapter import WeightAdapter
from mwsis.export.network import expected_shapes
from mwsis.export.targets import ADAPTERS

__all__ = ["ImportedBackbone", "read_backbone"]

OTHER_PREFIXES = {
    "middle_encoder.": ("pts_middle_encoder.",),
    "pts_middle_encoder.": ("middle_encoder.",),
    "segmentor.backbone.": ("backbone.",),
}
"""Where else detectors of a framework keep the same class (SST: VoteSegmentor alone)."""


@dataclass(frozen=True, eq=False)
class ImportedBackbone:
    """What a checkpoint holds of one of our networks.

    Attributes:
        adapter: the class that it was made with, with the prefix that the checkpoint uses.
        state: by our names, KRSC.
        report: how they fit the part of our network that the class has.
        missing_parts: tensors of our network that the class does not have.
        left_out: tensors of the checkpoint's other parts (heads, necks), by part.
    """

    adapter: WeightAdapter
    state: dict[str, Tensor]
    report: LoadReport
    missing_parts: tuple[str, ...]
    left_out: dict[str, int]


def read_backbone(path: Path | str, framework: str) -> ImportedBackbone:
    """Return the backbone of a detector's checkpoint; nothing is loaded anywhere.

    Args:
        path: as the framework writes it.
        framework: ``openpcdet``, ``mmdet3d``, ``sst`` or ``det3d``.

    Raises:
        WeightMismatchError: no such file, no checkpoint of that framework, or no backbone in it that we have.
    """
    choices = [each for adapter in ADAPTERS if adapter.framework == framework for each in _placed(adapter)]
    weights = choices[0].read(path)
    found = [_imported(weights, adapter) for adapter in choices if _holds(weights, adapter)]
    if not found:
        classes = ", ".join(dict.fromkeys(adapter.target_class for adapter in choices))
        places = ", ".join(dict.fromkeys(adapter.prefix for adapter in choices))
        raise WeightMismatchError(
            f"{path}: expected one of {classes} of {framework} under {places}, got tensors of "
            f"{', '.join(_parts(weights)) or 'nothing'}"
        )
    return max(found, key=lambda each: (each.report.fits, len(each.report.matched)))


def _placed(adapter: WeightAdapter) -> list[WeightAdapter]:
    """Return the adapter with each prefix under which detectors keep its class."""
    placed = [adapter]
    for prefix in OTHER_PREFIXES.get(adapter.prefix, ()):
        encoder = adapter.encoder_prefix and adapter.encoder_prefix.replace("segmentor.", "")
        placed.append(replace(adapter, prefix=prefix, encoder_prefix=encoder))
    return placed


def _holds(weights: Mapping[str, Tensor], adapter: WeightAdapter) -> bool:
    return adapter.prefix + "conv_input.0.weight" in weights


def _imported(weights: Mapping[str, Tensor], adapter: WeightAdapter) -> ImportedBackbone:
    state = adapter.from_target(weights)
    shapes = expected_shapes(adapter.architecture)
    expected = {key: shapes[key] for key in shapes if not adapter.parts or key.split(".")[0] in adapter.parts}
    got = {key: tuple(tensor.shape) for key, tensor in state.items()}
    report = LoadReport(
        matched=tuple(key for key in expected if got.get(key) == expected[key]),
        missing=tuple(key for key in expected if key not in got),
        unexpected=tuple(key for key in got if key not in expected),
        wrong_shape=tuple(
            (key, expected[key], got[key]) for key in expected if key in got and got[key] != expected[key]
        ),
    )
    others = {name: weights[name] for name in weights if not adapter.is_ours(name)}
    missing = tuple(key for key in shapes if key not in expected)
    return ImportedBackbone(adapter, state, report, missing, _parts(others))


def _parts(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the number of tensors of each part of a detector, by its name."""
    return dict(Counter(name.split(".")[0] for name in weights))
