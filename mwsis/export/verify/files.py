"""What every check of an export does: files against the manifest, then the framework's own class and loader on them.

A module beside this one tells `main` about a framework. Only numpy, torch and the standard library are needed here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import sys
from typing import Any

import numpy as np
import torch

FORMAT_VERSION = 2
CPU_TOLERANCE = 1e-4
GPU_TOLERANCE = 1e-3
"""Of the largest feature: other kernels add in another order."""


class Failed(Exception):
    """What is wrong, in one sentence."""


def main(framework: str, loaders: dict[str, Any], build: Any, run: Any) -> None:
    """Check the folder and say so, or leave with exit code 1 and one sentence.

    framework: as the manifest names it. loaders: name to function (model, path, entry), each of which loads a file as
    the framework does. build: (entry, arrays) to a model that holds the class where the file's names say it is.
    run: (model, entry, inputs) to arrays by the names of the parity file.
    """
    parser = argparse.ArgumentParser(description="Check exported weights in this environment.")
    parser.add_argument("folder", nargs="?", default=os.path.dirname(os.path.abspath(__file__)))
    parser.add_argument("--files-only", action="store_true", help="without " + framework)
    given = parser.parse_args()
    try:
        checked = check_folder(given.folder, framework)
        if not given.files_only:
            torch.set_num_threads(1)  # spconv's CPU kernels add up wrongly with more
            for entry, weights in checked:
                check_class(given.folder, entry, weights, loaders, build, run)
    except Failed as failure:
        sys.exit(f"{given.folder}: {failure}")
    what = "files" if given.files_only else "files, loading and features"
    names = ", ".join(entry["name"] for entry, _ in checked)
    sys.stdout.write(f"ok: {what} of {names}\n")


def check_folder(folder: str, framework: str) -> list[Any]:
    """Return the framework's entries of the manifest with their weights, once all of them are as they were exported."""
    try:
        with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
            manifest = json.load(file)
    except (OSError, ValueError) as error:
        raise Failed(f"manifest.json cannot be read ({error}); export again") from error
    if manifest.get("format") != "mwsis-backbone" or manifest.get("format_version") != FORMAT_VERSION:
        raise Failed(f"manifest.json is not that of an export of format {FORMAT_VERSION}; export again")
    entries = [entry for entry in manifest["files"] if entry["framework"] == framework]
    if not entries:
        raise Failed(f"the manifest names no file for {framework}; export with to={framework}")
    checked = [(entry, check_weights(folder, entry)) for entry in entries]
    for entry in manifest["files"] + [manifest["parity"]]:
        if sha256_of(folder, entry["name"]) != entry["sha256"]:
            raise Failed(f"{entry['name']} is not the file that the manifest was written for; export again")
    return checked


def sha256_of(folder: str, name: str) -> str:
    """Return the checksum of a file."""
    try:
        with open(os.path.join(folder, name), "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        raise Failed(f"{name} is missing; copy the whole export folder") from None


def check_weights(folder: str, entry: Any) -> dict[str, Any]:
    """Return the weights of a file, once names, shapes, types and values are those of the manifest."""
    weights = read_weights(folder, entry)
    name = entry["name"]
    for key in sorted(set(entry["keys"]) ^ set(weights)):
        raise Failed(f"{name}: {key} is {'unexpected' if key in weights else 'missing'}")
    for key, expected in entry["keys"].items():
        shape, dtype = list(weights[key].shape), str(weights[key].dtype)
        if shape != expected["shape"]:
            hint = f"; in_channels is {entry['in_channels']}" if key.endswith("conv_input.0.weight") else ""
            raise Failed(f"{name}: {key} has shape {shape}, expected {expected['shape']}{hint}")
        if dtype != "torch." + expected["dtype"]:
            raise Failed(f"{name}: {key} is {dtype}, expected {expected['dtype']}")
        if tensor_sha256(weights[key]) != expected["sha256"]:
            raise Failed(f"{name}: {key} has other values than were exported, or other axes")
    return weights


class TensorsOnly:
    """In the place of pickle for a torch that does not know ``weights_only``: reads tensors and runs nothing else."""

    class Unpickler(pickle.Unpickler):
        """Knows the names that tensors are made of."""

        def find_class(self, module: str, name: str) -> Any:
            """Return what a name stands for."""
            made_of = {("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2")}
            if (module, name) in made_of or (module == "torch" and name.endswith("Storage")):
                return super().find_class(module, name)
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no tensor")


def read_weights(folder: str, entry: Any) -> dict[str, Any]:
    """Return the tensors of a file; no code in it is run."""
    path = os.path.join(folder, entry["name"])
    if not os.path.isfile(path):
        raise Failed("{} is missing; copy the whole export folder".format(entry["name"]))
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except TypeError:  # torch before 1.13
            content = torch.load(path, map_location="cpu", pickle_module=TensorsOnly)
        return dict(content[entry["container"]])
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:120]
        raise Failed(f"{entry['name']} cannot be read ({reason})") from error


def tensor_sha256(tensor: torch.Tensor) -> str:
    """Return the checksum of a tensor's values in C order."""
    return hashlib.sha256(np.ascontiguousarray(tensor.numpy()).tobytes()).hexdigest()


def check_class(
    folder: str, entry: Any, weights: dict[str, Any], loaders: dict[str, Any], build: Any, run: Any
) -> None:
    """Load a file into the framework's class in each of its ways, and compare the features."""
    with np.load(os.path.join(folder, "parity.npz")) as file:
        arrays = {key: file[key] for key in file.files}
    for loader, load in loaders.items():
        torch.manual_seed(0)
        try:
            model = build(entry, arrays)
            load(model, os.path.join(folder, entry["name"]), entry)
        except ImportError as error:
            raise Failed(f"{entry['framework']} cannot be imported here ({error}); try --files-only") from error
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise Failed(f"{entry['name']}: {entry['class']} by {loader}: {reason}") from error
        check_loaded(entry, loader, model, weights)
        check_features(entry, loader, model, arrays, run)


def check_loaded(entry: Any, loader: str, model: Any, weights: dict[str, Any]) -> None:
    """Refuse a class that lacks a tensor of the file, has one that the file lacks, or was left with other values."""
    what = "{}: {} by {}: ".format(entry["name"], entry["class"], loader)
    state = {key: tensor.cpu() for key, tensor in model.state_dict().items() if key.startswith(prefixes(entry))}
    for key in sorted(set(weights) - set(state)):
        raise Failed(what + key + " is in the file and not in the class")
    for key in sorted(set(state) - set(weights)):
        raise Failed(what + key + " is in the class and not in the file")
    for key, tensor in weights.items():
        forms = [tensor]
        if tensor.dim() == 5:
            forms += [tensor.permute(4, 0, 1, 2, 3), tensor.permute(1, 2, 3, 4, 0)]
        if not any(form.shape == state[key].shape and torch.equal(form, state[key]) for form in forms):
            raise Failed(what + key + " was not loaded: the class holds other values")


def prefixes(entry: Any) -> tuple[str, ...]:
    """Return what the names of a file begin with."""
    return tuple(prefix for prefix in (entry["prefix"], entry["encoder_prefix"]) if prefix)


def check_features(entry: Any, loader: str, model: Any, arrays: dict[str, Any], run: Any) -> None:
    """Compare what the class makes of the stored inputs with the stored features."""
    on_gpu = torch.cuda.is_available()
    model.cuda() if on_gpu else model.cpu()
    ready(model, on_gpu)
    for index in range(int(arrays["num_sets"])):
        stored = {key[:-2]: value for key, value in arrays.items() if key.endswith(f"_{index}")}
        inputs: dict[str, Any] = {key: torch.from_numpy(value) for key, value in stored.items()}
        if on_gpu:
            inputs = {key: tensor.cuda() for key, tensor in inputs.items()}
        inputs["num_frames"] = int(arrays["num_frames"])
        with torch.no_grad():
            found = run(model, entry, inputs)
        for key, tensor in found.items():
            what = f"{entry['name']}: {entry['class']} by {loader}: {key} of set {index}"
            compare(what, tensor.float().cpu().numpy(), stored[key], on_gpu)


def compare(what: str, got: Any, expected: Any, on_gpu: bool) -> None:
    """Refuse features that differ by more than other kernels explain."""
    if got.shape != expected.shape:
        raise Failed(f"{what} has shape {got.shape}, expected {expected.shape}")
    limit = (GPU_TOLERANCE if on_gpu else CPU_TOLERANCE) * float(np.abs(expected).max())
    error = float(np.abs(got - expected).max())
    if not error <= limit:
        raise Failed(f"{what} differs by up to {error:.3g}, allowed {limit:.3g}")


def ready(model: Any, on_gpu: bool) -> None:
    """Put a model in evaluation; on a CPU, spconv has neither a fused bias nor implicit GEMM."""
    model.eval()
    for module in model.modules():
        if hasattr(module, "indice_key") and not on_gpu:
            module.train()
            if hasattr(module, "algo"):
                module.algo = type(module.algo).Native


class Holder(torch.nn.Module):
    """A model with nothing but the class that is checked, where the file's names say it is."""

    def __init__(self, prefix: str, module: torch.nn.Module) -> None:
        super().__init__()
        self.put(prefix, module)

    def put(self, prefix: str, module: torch.nn.Module) -> None:
        """Add a module at a dotted prefix."""
        name, _, rest = prefix.rstrip(".").partition(".")
        if not rest:
            self.add_module(name, module)
            return
        if not hasattr(self, name):
            self.add_module(name, Holder(rest, module))
        else:
            getattr(self, name).put(rest, module)

    def at(self, prefix: str) -> Any:
        """Return the module at a dotted prefix."""
        module: Any = self
        for name in prefix.rstrip(".").split("."):
            module = getattr(module, name)
        return module
