"""The table of targets: which network of ours becomes which class of which framework, and under which names.

A new target is a new row. Every row is compared with a listing of the class's own keys in the tests. Not here: what a
row does (`adapter.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from lidar.start_weights import NEUTRAL_FILE, VOXEL_ENCODER
from mwsis.core.errors import ConfigError, closest_name
from mwsis.export.adapter import WeightAdapter

__all__ = ["ADAPTERS", "FRAMEWORKS", "adapters_for", "neutral"]

ENCODER = ("conv_input", "conv1", "conv2", "conv3", "conv4", "conv_out")
"""The modules of UNetV2 that are VoxelBackBone8x, and of Res8xUNet that are VoxelResBackBone8x."""

MM_NAMES = (
    ("conv5.0.", "upsample_layer1."),
    *((f"inv_conv{level}.", f"upsample_layer{level}.") for level in (4, 3, 2)),
    *((f"conv_up_t{level}.", f"lateral_layer{level}.") for level in (4, 3, 2, 1)),
    *((f"conv_up_m{level}.", f"merge_layer{level}.") for level in (4, 3, 2, 1)),
    *((f"conv{level}.", f"encoder_layers.encoder_layer{level}.") for level in (1, 2, 3, 4)),
)
MM_RESIDUAL_NAMES = (
    *((f"conv{level}.0.", f"encoder_layers.encoder_layer{level - 1}.2.") for level in (2, 3, 4)),
    *(
        (f"conv{level}.{block}.", f"encoder_layers.encoder_layer{level}.{block - 1}.")
        for level in (2, 3, 4)
        for block in (1, 2)
    ),
    ("conv1.", "encoder_layers.encoder_layer1."),
)
"""There a level ends with the convolution that leaves it; in OpenPCDet one begins with the convolution that enters."""
DET3D_NAMES = (
    *((f"conv{level}.{block}.", f"conv{level}.{block + 2}.") for level in (2, 3, 4) for block in (1, 2)),
    *((f"conv{level}.0.", f"conv{level}.") for level in (2, 3, 4)),
    ("conv_out.", "extra_conv."),
)

OPENPCDET = "8cacccec11db6f59bf6934600c9a175dae254806"
MMDET3D = "fe25f7a51d36e3702f961e198894580d83c4387b"  # v1.4.0
SST = "7c95376a893461aeefc8603880fa2f2a390fe38a"
DET3D = "3cf7d870537e287c99b43b68636ea392a5e6f519"


def _openpcdet(target_class: str, architecture: str, parts: tuple[str, ...] = ()) -> WeightAdapter:
    file_name = f"openpcdet_{target_class.lower()}.pth"
    return WeightAdapter(
        *("openpcdet", target_class, architecture, file_name, "model_state", "backbone_3d."),
        parts=parts,
        checked_against=OPENPCDET,
    )


ADAPTERS: tuple[WeightAdapter, ...] = (
    _openpcdet("UNetV2", "unet_v2"),
    _openpcdet("VoxelBackBone8x", "unet_v2", ENCODER),
    _openpcdet("VoxelResBackBone8x", "res8x_unet", ENCODER),
    # (kd, kh, kw, in, out) without metadata: the one form that both load_from and init_cfg read, and mmcv.ops as well
    WeightAdapter(
        *("mmdet3d", "SparseUNet", "unet_v2", "mmdet3d_sparseunet.pth", "state_dict", "middle_encoder."),
        layout="RSCK",
        names=MM_NAMES,
        checked_against=MMDET3D,
    ),
    WeightAdapter(
        *("mmdet3d", "SparseEncoder", "unet_v2", "mmdet3d_sparseencoder.pth", "state_dict", "middle_encoder."),
        layout="RSCK",
        parts=ENCODER,
        names=MM_NAMES,
        checked_against=MMDET3D,
    ),
    WeightAdapter(
        *("mmdet3d", "SparseEncoder", "res8x_unet", "mmdet3d_sparseencoder_basicblock.pth", "state_dict"),
        prefix="pts_middle_encoder.",
        layout="RSCK",
        parts=ENCODER,
        names=MM_RESIDUAL_NAMES,
        fold_biases=True,
        checked_against=MMDET3D,
    ),
    WeightAdapter(
        *("sst", "SimpleSparseUNet", "fsd_unet", "sst_fsd.pth", "state_dict", "segmentor.backbone."),
        encoder_prefix="segmentor.voxel_encoder.",
        checked_against=SST,
    ),
    WeightAdapter(
        *("det3d", "SpMiddleResNetFHD", "res8x_unet", "det3d_spmiddleresnetfhd.pth", "state_dict", "backbone."),
        parts=ENCODER,
        names=DET3D_NAMES,
        checked_against=DET3D,
    ),
)
FRAMEWORKS = tuple(dict.fromkeys(adapter.framework for adapter in ADAPTERS))


def neutral(architecture: str) -> WeightAdapter:
    """Return what writes a safetensors file with our own names: the file that we read ourselves."""
    return WeightAdapter("neutral", architecture, architecture, NEUTRAL_FILE, "", "", VOXEL_ENCODER)


def adapters_for(architecture: str, wanted: Sequence[str] = ()) -> list[WeightAdapter]:
    """Return the targets of a network, the neutral one last: it is always written.

    Args:
        architecture: ``lidar.network`` of the run.
        wanted: frameworks, classes of theirs, or ``neutral``; empty for everything that the network fits.

    Raises:
        ConfigError: there is no such target, or it takes another network.
    """
    has = [adapter for adapter in ADAPTERS if adapter.architecture == architecture]
    chosen: list[WeightAdapter] = [] if wanted else has
    for name in wanted:
        found = [adapter for adapter in has if name in (adapter.framework, adapter.target_class)]
        if not found and name != "neutral":
            _refuse(name, architecture, has)
        chosen += [adapter for adapter in found if adapter not in chosen]
    return [*chosen, neutral(architecture)]


def _refuse(name: str, architecture: str, has: Sequence[WeightAdapter]) -> None:
    takers = [adapter for adapter in ADAPTERS if name in (adapter.framework, adapter.target_class)]
    if not takers:
        known = [*FRAMEWORKS, *(adapter.target_class for adapter in ADAPTERS), "neutral"]
        raise ConfigError(f"to={name}: no such target" + closest_name(name, known, shown=[*FRAMEWORKS, "neutral"]))
    needed = " or ".join(dict.fromkeys(f"lidar={adapter.architecture}" for adapter in takers))
    fitting = ", ".join(dict.fromkeys(adapter.framework for adapter in has))
    raise ConfigError(
        f"to={name}: {takers[0].target_class} cannot take the weights of {architecture}; train with {needed}, or "
        f"choose of {fitting}, neutral"
    )
