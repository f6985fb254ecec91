"""Find out what is wrong here before a training does: installation, GPU, disks, and the machine against a run.

    uv run tools/doctor.py                                       against the default run
    uv run tools/doctor.py experiment=mwsis_waymo trainer=ddp data.root=FOLDER      against another one
    uv run tools/doctor.py store=DIR                             also how fast a frame store is read
    uv run tools/doctor.py json=FILE                             writes the findings, too

Looks at Python, torch, the required packages, whose `lidar`, `camera`, `fusion` and `mwsis` would be imported, GPU and
driver, sparse convolutions (values and gradients against dense ones), extras, room where runs and cache go, the frame
store, cores, memory and GPUs that the run asks for. Settings are those of tools/train.py. It changes nothing, downloads
nothing and starts where torch, spconv or others are missing. Each finding is a sentence, with a second one on what to
do where that is needed.

Exit code: 0 healthy (there may be advice), 2 wrong arguments, 3 something is broken.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mwsis.training.config import RunConfig
    from mwsis.training.doctor.checks import Answer, Check, Finding

EXIT_BROKEN = 3
NONE = "none"
HOME = Path(__file__).resolve().parents[1]


def resolved() -> dict[str, Path | None]:
    """Return the files that an import of our packages would begin with, without importing anything."""
    specs = {name: find_spec(name) for name in ("mwsis", "lidar", "camera", "fusion")}
    return {name: Path(spec.origin).resolve() if spec and spec.origin else None for name, spec in specs.items()}


FOUND = resolved()
"""As the other commands would find them: before this one puts its own folder first (below)."""


def main(arguments: list[str]) -> None:
    """Ask everything, print the answers, write them."""
    from mwsis.core.errors import ConfigError
    from mwsis.training.command_line import split_arguments
    from mwsis.training.doctor.checks import BROKEN, examine

    own, overrides = split_arguments(arguments, {"store": NONE, "json": NONE})
    run, answer = configured(overrides)
    store = None if own["store"] == NONE else Path(own["store"])
    found = []
    for finding in examine([*installation(), *extras(run), *against_run(run, answer, store)]):
        found.append(finding)
        print(lines(finding), flush=True)
    wrong = [finding.name for finding in found if finding.state == BROKEN]
    print(f"broken: {', '.join(wrong)}" if wrong else "healthy")
    if own["json"] != NONE:
        from mwsis.core.files import write_json

        try:
            write_json(own["json"], {"healthy": not wrong, "checks": found})
        except OSError as error:
            raise ConfigError(f"json={own['json']}: cannot be written ({error.strerror}); give another path") from None
    if wrong:
        raise SystemExit(EXIT_BROKEN)


def installation() -> list[Check]:
    """Return the checks that no run matters to."""
    from mwsis.training.doctor import computing, install
    from mwsis.training.doctor.checks import Check

    return [
        Check("python", install.python_fits, install.AGAIN),
        Check("packages", partial(install.packages_are_ours, FOUND, HOME), install.AGAIN),
        Check("requirements", install.requirements_are_met, install.AGAIN),
        Check("torch", install.torch_works, install.AGAIN, keep="torch"),
        Check("gpu", computing.gpu_works, "update the driver, or install torch for the CUDA it has", ("torch",)),
        Check("spconv", computing.spconv_works, install.AGAIN, ("torch",)),
    ]


def configured(overrides: list[str]) -> tuple[RunConfig | None, Answer]:
    """Return the chosen run, None where its settings cannot be had, and the answer to whether they can.

    Raises:
        ConfigError: an override is no setting, or has no such value.
    """
    from mwsis.core.errors import ConfigError
    from mwsis.training.doctor.checks import broken, ok
    from mwsis.training.doctor.install import AGAIN

    try:
        from mwsis.training.commands import compose_run
        from mwsis.training.config import typed
    except ImportError as error:
        return None, broken(f"settings cannot be read ({error})", AGAIN)
    config = compose_run(overrides)
    try:
        run = typed(config)
    except ConfigError as error:
        return None, broken(str(error), "change the settings so that a run can begin with them")
    steps = f"{run.trainer.max_steps} steps of {run.trainer.frames_per_step} frame(s)"
    return run, ok(f"method {run.method.name} on {run.data.name}, {steps}")


def extras(run: RunConfig | None) -> list[Check]:
    """Return the checks of optional packages."""
    from mwsis.training.doctor import install
    from mwsis.training.doctor.checks import Check

    asked = {}
    if run is not None and run.camera.mmdet is not None:
        asked["mmdet"] = "camera.mmdet"
    if run is not None and run.trainer.segment_ops == "scatter":
        asked["torch-scatter"] = "trainer.segment_ops=scatter"
    return [
        Check(name, partial(install.extra_works, name, asked.get(name, "")), f"uninstall {name} or install it again")
        for name in install.EXTRAS
    ]


def against_run(run: RunConfig | None, answer: Answer, store: Path | None) -> list[Check]:
    """Return the checks of what a run needs; without one they are not made, and say so."""
    from mwsis.training.doctor import machine
    from mwsis.training.doctor.checks import Check
    from mwsis.training.doctor.install import AGAIN

    def disk(name: str, setting: str) -> Answer:
        folder = {"runs": Path(run.out or "runs"), "frame stores": Path(run.data.cache)}[name]
        return machine.disk_has_room(folder, name, setting)

    settings, torch_too = ("configuration",), ("configuration", "torch")
    no_store = "give store= a folder of tools/convert.py, or put right what is named, or delete it to have it made anew"
    unknown = "this system does not say; a run may work nevertheless"
    return [
        Check("configuration", lambda: answer, AGAIN),
        Check("disk of runs", partial(disk, "runs", "out=..."), unknown, settings),
        Check("disk of stores", partial(disk, "frame stores", "data.cache=..."), unknown, settings),
        Check("frame store", lambda: machine.store_reads(store, run), no_store, torch_too),
        Check("cores", lambda: machine.cores_suffice(run), unknown, settings),
        Check("memory", lambda: machine.memory_suffices(run), unknown, settings),
        Check("shared memory", lambda: machine.shared_memory_suffices(run), unknown, settings),
        Check("gpus of the run", lambda: machine.gpus_suffice(run), "see the check 'gpu'", torch_too),
    ]


def lines(finding: Finding) -> str:
    """Return a finding as text: a line, and one of advice."""
    text = f"{finding.state:<8}{finding.name:<17}{finding.finding}"
    return f"{text}\n{'':<25}-> {finding.advice}" if finding.advice else text


if __name__ == "__main__":
    sys.path.insert(0, str(HOME))  # what is wrong with our packages is looked at, not run into
    from mwsis.training.command_line import run_command

    run_command(main, __doc__ or "")
