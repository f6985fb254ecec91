"""Do GPU and sparse convolutions compute what they should? Each result is compared with a slow and obvious one.

Whether torch and spconv are installed in the right versions is `install.py`.
"""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING

from mwsis.training.doctor.checks import Answer, advise, broken, ok
from mwsis.training.doctor.install import AGAIN, requirement

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["gpu_works", "largest_difference", "spconv_works"]

GPU_TOLERANCE = 1e-2
"""Of a product of matrices, relative: TF32 keeps ten bits."""
SPARSE_TOLERANCE = 1e-3
"""Of values and gradients, relative to the largest: float32 against float64, with room for TF32."""
SHAPE = (12, 20, 16)
CHANNELS = (4, 8, 6)
NUM_VOXELS = 900
CPU_WHEEL = "spconv"


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver, None where there is none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.split("\n")[0].strip() or None if done.returncode == 0 else None


def gpu_works() -> Answer:
    """Answer whether every GPU multiplies matrices as the CPU does, or why there is none."""
    import torch

    driver, built_for = driver_version(), torch.version.cuda
    if not torch.cuda.is_available():
        if driver is None:
            return ok("no NVIDIA driver here; networks run on the CPU")
        if built_for is None:
            return advise(
                f"NVIDIA driver {driver}, but torch {torch.__version__} is built for the CPU alone",
                "install torch for CUDA: uv sync, or the wheel that pytorch.org names for your driver",
            )
        return advise(
            f"NVIDIA driver {driver}, but torch {torch.__version__}, built for CUDA {built_for}, finds no usable GPU",
            "update the driver or install torch for an older CUDA; in a container, pass the GPUs in (--gpus all)",
        )
    names = []
    for number in range(torch.cuda.device_count()):
        name, size = torch.cuda.get_device_name(number), torch.cuda.get_device_properties(number).total_memory
        one = torch.randn(256, 256, generator=torch.Generator().manual_seed(number))
        error = float(((one.cuda(number) @ one.cuda(number)).cpu() - one @ one).abs().max() / (one @ one).abs().max())
        if not error < GPU_TOLERANCE:
            return broken(
                f"GPU {number} ({name}) is off by {error:.2g} of the largest entry in a product of matrices",
                "try another GPU (CUDA_VISIBLE_DEVICES) and look for hardware errors with nvidia-smi -q",
            )
        names.append(f"{name} with {size / 1e9:.0f} GB")
    return ok(f"{', '.join(names)} (driver {driver or 'unknown'}, torch built for CUDA {built_for})")


def spconv_works() -> Answer:
    """Answer whether sparse convolutions give the values and gradients of dense ones, on the CPU and each GPU."""
    wanted = requirement("spconv")
    wheels = metadata.packages_distributions().get("spconv", [])
    install = f"uv sync, or pip install '{wanted.name}{wanted.specifier}'" if wanted else AGAIN
    if find_spec("spconv") is None:
        return broken("spconv is not installed, without which there is no LiDAR branch", f"install it: {install}")
    if CPU_WHEEL in wheels:
        return broken(
            "the CPU wheel 'spconv' is installed, which computes wrong values with several threads and no gradients",
            f"pip uninstall spconv, then {install}",
        )
    named = ", ".join(f"{wheel} {metadata.version(wheel)}" for wheel in wheels) or "spconv"
    import torch

    devices = ["cpu"] + [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    for device in devices:
        error = largest_difference(device)
        if not error < SPARSE_TOLERANCE:
            return broken(
                f"{named} on {device} is off by {error:.2g} of the largest value or gradient of dense convolutions",
                f"install the wheel that this project is tested with: {install}",
            )
    if wanted and wheels and wheels != [wanted.name]:
        return advise(
            f"{named} computes right on {', '.join(devices)}, but mwsis is tested with {wanted.name}{wanted.specifier}",
            f"pip uninstall {' '.join(wheels)}, then {install}",
        )
    return ok(f"{named}: values and gradients are those of dense convolutions on {', '.join(devices)}")


def largest_difference(device: str) -> float:
    """Return how far a submanifold and a strided convolution are off from dense ones in float64 on the CPU.

    Args:
        device: where the sparse ones run.

    Returns:
        Largest difference of outputs, gradients of the input and of both kernels, each relative to its largest entry.
    """
    import torch

    from lidar.sparse import dense, sparse_tensor, strided_conv, subm_conv

    features, coords = _voxels()
    first = subm_conv(CHANNELS[0], CHANNELS[1], padding=1, key="first").to(device)
    second = strided_conv(CHANNELS[1], CHANNELS[2], kernel=3, stride=2, padding=1, key="second").to(device)
    inputs = features.to(device).requires_grad_()
    output = dense(second(first(sparse_tensor(inputs, coords.to(device), SHAPE, 1))))
    kernels = [*first.parameters(), *second.parameters()]
    wanted, *leaves = _dense_chain(features, coords, *kernels)
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    got = [output, *torch.autograd.grad(output, [inputs, *kernels], cotangent.to(device))]
    true = [wanted, *torch.autograd.grad(wanted, leaves, cotangent.double())]
    errors = [
        float((mine.detach().cpu().double() - other.detach()).abs().max() / other.detach().abs().max())
        for mine, other in zip(got, true, strict=True)
    ]
    return max(errors) if all(error == error for error in errors) else float("nan")


def _voxels() -> tuple[Tensor, Tensor]:
    """Return random features (V, D) float32 and different cells (V, 4) int32 of one frame."""
    import torch

    generator = torch.Generator().manual_seed(0)
    cells = torch.randperm(SHAPE[0] * SHAPE[1] * SHAPE[2], generator=generator)[:NUM_VOXELS]
    z, y, x = cells // (SHAPE[1] * SHAPE[2]), cells // SHAPE[2] % SHAPE[1], cells % SHAPE[2]
    return torch.randn(NUM_VOXELS, CHANNELS[0], generator=generator), torch.stack([0 * z, z, y, x], 1).int()


def _dense_chain(features: Tensor, coords: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
    """Return the output of the same two layers as torch computes them, and the leaves of its graph."""
    from torch.nn.functional import conv3d

    leaves = [each.detach().cpu().double().requires_grad_() for each in (features, first, second)]
    _, z, y, x = coords.long().unbind(1)
    volume = leaves[0].new_zeros(*SHAPE, CHANNELS[0]).index_put((z, y, x), leaves[0]).permute(3, 0, 1, 2)[None]
    occupied = volume.new_zeros(1, 1, *SHAPE)
    occupied[0, 0, z, y, x] = 1
    middle = conv3d(volume, leaves[1].permute(0, 4, 1, 2, 3), padding=1) * occupied
    return conv3d(middle, leaves[2].permute(0, 4, 1, 2, 3), stride=2, padding=1), *leaves
