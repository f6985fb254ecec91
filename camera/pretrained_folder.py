"""Networks of Hugging Face's transformers in folders that a user has downloaded: what one holds, and loading it.

The only file that imports transformers (extra `depth`). Nothing is downloaded, and weights are read from safetensors
alone, which hold nothing that could be run. `tools/depth.py` and `tools/masks.py` use them.
"""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mwsis.core.errors import ConfigError

__all__ = ["load_pretrained", "read_architecture", "require_transformers"]

CONFIG = "config.json"


def read_architecture(folder: Path, where: str, expected: str) -> dict[str, Any]:
    """Return what a checkpoint says about itself; it has ``model_type``.

    Args:
        folder: of the checkpoint.
        where: the setting, named in errors.
        expected: what the folder should be a copy of, in words.

    Raises:
        ConfigError: it is no such folder.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())
        str(facts["model_type"])
    except OSError as error:
        raise ConfigError(
            f"{where}: {CONFIG} cannot be read ({error.strerror}); give the folder of {expected}"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{where}: {CONFIG}: expected JSON with model_type; copy the checkpoint again") from None
    return facts


def require_transformers(tool: str) -> None:
    """Refuse to begin without transformers.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec("transformers") is None:
        raise ConfigError(f"{tool} needs transformers, which is not installed; install the extra 'depth'")


def load_pretrained(folder: Path, where: str, processor: str, network: str, strict: bool = False) -> tuple[Any, Any]:
    """Return a checkpoint's processor and its network, for inference, on the GPU where there is one.

    Args:
        folder: of the checkpoint.
        where: the setting, named in errors.
        processor: name of its class in transformers.
        network: name of its class in transformers.
        strict: every tensor of the network must be in the checkpoint; transformers itself makes up the others.

    Raises:
        ConfigError: transformers is too old to know them, or cannot load them.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when it is imported

    import torch
    import transformers
    from safetensors import SafetensorError

    for name in (processor, network):
        if not hasattr(transformers, name):
            raise ConfigError(f"{where}: transformers {transformers.__version__} has no {name}; install a newer one")
    try:
        prepares = getattr(transformers, processor).from_pretrained(folder, local_files_only=True)
        loaded, report = getattr(transformers, network).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{where}: transformers cannot load it ({' '.join(str(error).split())})") from None
    if strict and (lacking := sorted(map(str, report["missing_keys"]))):
        raise ConfigError(
            f"{where}: the checkpoint lacks {len(lacking)} tensors of a {network}, first '{lacking[0]}'; copy it again"
        )
    return prepares, loaded.eval().to("cuda" if torch.cuda.is_available() else "cpu")
