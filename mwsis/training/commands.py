"""The configuration that a command's arguments ask for, and what commands print while they work and at the end.

Light on purpose: a wrong key is refused before torch is imported. How a command is run at all is `command_line.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mwsis.core.errors import ConfigError, closest_name
from mwsis.training.command_line import progress_line, run_command, split_arguments
from mwsis.training.config import RunConfig, register_schemas

__all__ = [
    "CONFIG_DIR",
    "compose_run",
    "print_scores",
    "progress_line",
    "restore_config",
    "run_command",
    "split_arguments",
]

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIG_DIR = next(filter(Path.is_dir, (_PACKAGE / "configs", _PACKAGE.parent / "configs")))
"""In an installed package its own copy, in the project folder the one that is edited."""
HEADLINES = (
    *("mask_ap", "mask_ap50", "mask_ap75", "matched_mask_iou", "matched_box_iou"),
    *("instance_ap", "instance_ap50", "instance_ap25", "miou"),
)
"""The scores that are printed; `metrics.json` has all."""


def compose_run(overrides: list[str]) -> DictConfig:
    """Return the run configuration for these overrides.

    Raises:
        ConfigError: an override names an unknown key, group or option, or a value of the wrong type.
    """
    register_schemas()
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
        try:
            config = compose("train", overrides=overrides)
            OmegaConf.resolve(config)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_sentence(error, overrides)) from None
    missing = OmegaConf.missing_keys(config)
    if "root" in config.data.source and config.data.source.root is None:
        missing = {"data.root"}
    if missing:
        raise ConfigError(f"'{sorted(missing)[0]}' has no value; give it as {sorted(missing)[0]}=...")
    return config


PREDICTION = ("camera.refinement", "camera.score_threshold", "camera.nms_iou", "lidar.min_points", "method.rsc")
"""Settings that training does not depend on, and which may be others afterwards."""


def restore_config(saved: str, asked: DictConfig | None = None, overrides: Sequence[str] = ()) -> DictConfig:
    """Return a run's saved configuration, with data set and prediction settings replaced where the user asked for it.

    Args:
        saved: YAML from a checkpoint.
        asked: the configuration composed from ``overrides``, or None without any.
        overrides: what the user gave; ``data=...`` takes another data set, ``data.<key>=...`` alone changes the run's.

    Raises:
        ConfigError: an override is about something that training depended on, or another version saved it.
    """
    try:
        config = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.create(saved))
    except OmegaConfBaseException as error:
        raise ConfigError(f"the run's configuration is of another version ({str(error).splitlines()[0]})") from None
    assert isinstance(config, DictConfig)
    if asked is not None and any(override.startswith("data=") for override in overrides):
        config.data = asked.data
    for override in overrides:
        name = override.lstrip("+").partition("=")[0]
        if not re.match(r"data[.=]", override.lstrip("+")) and name not in PREDICTION:
            known = ", ".join(("data", "data.<key>", *PREDICTION))
            raise ConfigError(f"argument '{override}': after training only these can change: {known}")
        if name != "data" and asked is not None:
            OmegaConf.update(config, name, OmegaConf.select(asked, name), merge=False)
    return config


def print_scores(metrics: dict[str, Any]) -> None:
    """Print the headline scores, one line per branch and model."""
    for branch in ("camera", "lidar"):
        for model, scores in (metrics.get(branch) or {}).items():
            chosen = {name: value for name, value in (scores or {}).items() if name in HEADLINES and value is not None}
            text = "  ".join(f"{name} {value:.3f}" for name, value in chosen.items())
            print(f"{branch} {model}: {text or 'no ground truth to score against'}")


def _sentence(error: Exception, overrides: list[str]) -> str:
    text = " ".join(str(error).split())
    if found := re.search(r"Could not find '([\w/]+)/([^'/]+)'", text):
        group, option = found.groups()
        options = [path.stem for path in (CONFIG_DIR / group).glob("*.yaml")]
        return f"{group}={option}: no such {group}" + closest_name(option, options)
    if found := re.search(r"Could not override '([^']+)'|Key '([^']+)' (?:is not in struct|not in)", text):
        wrong = _given_key(found.group(1) or found.group(2), overrides)
        return f"'{wrong}' is not a setting" + closest_name(wrong, _known_keys(), shown=_groups())
    cause = " ".join(str(error.__cause__ or error).split())
    if found := re.search(r"(Value .*?)(?: full_key: (\S+)|$)", cause):
        return f"{found.group(2) or 'a setting'}: {found.group(1)}"
    return text.split(" See https")[0]


def _given_key(fragment: str, overrides: list[str]) -> str:
    keys = [override.partition("=")[0].lstrip("+~") for override in overrides]
    return next((key for key in keys if key == fragment or key.endswith("." + fragment)), fragment)


def _groups() -> list[str]:
    ladders = "ladder"  # lists of runs (tools/ablate.py), not a choice within one
    return [path.name for path in CONFIG_DIR.iterdir() if path.is_dir() and path.name != ladders]


def _known_keys() -> list[str]:
    return _groups() + list(_leaves(compose("train"), ""))


def _leaves(node: DictConfig, prefix: str) -> Iterator[str]:
    for key in node:
        path = f"{prefix}{key!s}"
        yield path
        child = node._get_node(str(key))
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            yield from _leaves(child, path + ".")
