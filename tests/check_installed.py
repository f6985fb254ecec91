"""Try the wheel where it is installed alone: packages, configurations, the labels guide's script; for `.ci/run`."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def guide_script(project: Path) -> str:
    page = (project / "docs" / "guides" / "labels.md").read_text(encoding="utf-8")
    return re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]


def check(project: Path) -> None:
    import camera
    import fusion
    import lidar
    import mwsis
    from mwsis.training.commands import compose_run

    for package in (mwsis, lidar, camera, fusion):
        home = Path(package.__file__).resolve()
        assert project not in home.parents, f"{home} is the project's, not the wheel's"
    assert compose_run(["experiment=lidar_only"]).method.branches == ["lidar"]
    names: dict = {}
    exec(guide_script(project), names)
    labels = names["labels"].semantic_labels
    assert len(labels) == 4000
    assert 0 < int((labels == 0).sum()) < 4000
    print(f"the wheel works: {int((labels == 0).sum())} of 4000 points labelled, {Path(mwsis.__file__).parent}")


if __name__ == "__main__":
    check(Path(sys.argv[1]).resolve())
