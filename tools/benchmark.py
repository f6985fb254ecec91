"""Time what is fast here against the obvious way to do it, in the same run, after comparing their results.

    uv run tools/benchmark.py suite=decode               Waymo v1 frame, file to arrays: a reader of messages and numpy
    uv run tools/benchmark.py suite=store                random frame of the frame store: .npy files of its arrays
    uv run tools/benchmark.py suite=labels               labels of a street sweep from boxes: the slow twins of tests
    uv run tools/benchmark.py suite=clustering           connected components: a k-d tree, and all distances
    uv run tools/benchmark.py suite=point_ap             AP of LiDAR instances: pycocotools on masks of one row
    uv run tools/benchmark.py suite=mask_ap              AP of camera masks: pycocotools on full-size bitmaps
    uv run tools/benchmark.py suite=networks             sparse U-Nets, forward and backward: plain spconv
    uv run tools/benchmark.py suite=camera_losses        losses of masks from boxes: the published dense form
    uv run tools/benchmark.py suite=step                 parts of a training step, and loading: the whole step
    uv run tools/benchmark.py suite=decode json=FILE     also writes the rows

A ratio under 1 says that this project is faster. Times are the best of several, both sides taking turns; other work on
the machine still shows. Inputs are made up, of the size of Waymo's. Exit code: 0 done, 1 results differ, 2 wrong input.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from mwsis.core.errors import ConfigError, closest_name
from mwsis.training.commands import run_command, split_arguments

if TYPE_CHECKING:
    from tools.benchmarks.measure import Row

SUITES = ("decode", "store", "labels", "clustering", "point_ap", "mask_ap", "networks", "camera_losses", "step")
NO_FILE = "none"


def main(arguments: list[str]) -> None:
    """Measure a suite, print the table, write the rows."""
    own, unknown = split_arguments(arguments, {"suite": "", "json": NO_FILE})
    if unknown:
        raise ConfigError(f"'{unknown[0].partition('=')[0]}' is not a setting; known: json, suite")
    if own["suite"] not in SUITES:
        raise ConfigError(f"suite={own['suite']}: no such suite{closest_name(own['suite'], SUITES)}")

    from mwsis.core.files import write_json

    suite = import_module(f"tools.benchmarks.{own['suite']}")
    with tempfile.TemporaryDirectory() as folder:
        facts, rows = suite.run(Path(folder), suite.Sizes())
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(table(rows))
    if own["json"] != NO_FILE:
        write_json(own["json"], {"suite": own["suite"], **facts, "rows": [asdict(row) for row in rows]})
        print(f"rows: {own['json']}")


def table(rows: list[Row]) -> str:
    """Return the rows as aligned text."""
    lines = [f"{'name':<44}{'unit':<6}{'ours':>10}{'reference':>12}{'ratio':>8}"]
    for row in rows:
        lines.append(f"{row.name:<44}{row.unit:<6}{row.ours:>10.2f}{row.reference:>12.2f}{row.ratio:>8.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main, __doc__ or "")
