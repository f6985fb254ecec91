"""The typed configuration of a run: one dataclass per group of `configs/`, composed by hydra.

A value that is a class (`_target_`) is only used where outsiders plug in: data sources, loss terms, affinities,
pseudo-mask sources. Commands start in `commands.py`; the run itself is `run.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf

from mwsis.core.errors import ConfigError, closest_name

__all__ = [
    "BRANCHES",
    "NETWORKS",
    "PRECISIONS",
    "BranchOptimConfig",
    "CameraConfig",
    "DataConfig",
    "FinetuneConfig",
    "LidarConfig",
    "MaskRCNNConfig",
    "MethodConfig",
    "RunConfig",
    "TermConfig",
    "TrainerConfig",
    "instantiated",
    "labels_used",
    "register_schemas",
    "typed",
]

BRANCHES = ("camera", "lidar")
NETWORKS = {
    "unet_v2": "lidar.unet_v2.unet_v2_parts",
    "fsd_unet": "lidar.fsd_unet.fsd_unet_parts",
    "res8x_unet": "lidar.res8x_unet.res8x_unet_parts",
}
"""What makes encoder and backbone, by name, as import paths: a run is checked before anything heavy is imported."""

PRECISIONS = ("32", "bf16-camera")
SEGMENT_OPS = ("torch", "scatter")
SUPERVISIONS = ("boxes", "masks", "mixed")
TASKS = ("detection", "instance", "semantic")
SCRATCH = "scratch"
"""What `FinetuneConfig.init` says where nothing is loaded."""
VOTES_KEPT = 4
"""Of each point; `fusion.vote_history.DEPTH`, which a check before anything heavy is imported cannot read."""


@dataclass
class DataConfig:
    """A data set and how frames become samples."""

    name: str = MISSING
    # `_target_` of a Source and its settings
    source: Any = MISSING
    # folder of the data set; unused by the embedded one
    root: str | None = None
    # frame stores and label caches are kept here
    cache: str = MISSING
    # processes that read the data set into the cache
    cache_workers: int = 1
    train_split: str = "train"
    val_split: str = "val"
    # x0 y0 z0 x1 y1 z1, metres, vehicle frame: points outside never enter the network
    point_cloud_range: list[float] = MISSING
    # leave out points that fall on none of the frame's loaded images: they carry no label (published: true)
    only_in_image: bool = True
    # image widths drawn from at training time, px; the last one is used for evaluation
    image_widths: list[int] = MISSING
    # rows and columns, px, of the part of each resized image to train on, around an object; null = all of it, as
    # published. Evaluation sees whole images.
    crop: list[int] | None = None
    # height and width that training images are padded to, px, multiples of 32; null = the largest of each process's
    # part of a step (padding is not wholly without effect: several processes equal one to the digit with a size here)
    pad_to: list[int] | None = None
    # rotation +-deg and relative scale of the sweep (MWSIS: 45, 0.05)
    rotation_deg: float = 45.0
    scale_jitter: float = 0.05
    # cameras of a frame used in a training step, drawn anew each time; null = all, as published
    cameras_per_frame: int | None = None
    # class-wise clustering radii, metres, in class order (MWSIS section 3.1: .6 .1 .4)
    radii: list[float] = field(default_factory=lambda: [0.6, 0.1, 0.4])
    # what each class is like, vehicle, pedestrian or cyclist: the sizes that method.labels=default expects; null = by
    # the words in its name (mwsis.data.classes.kinds_of)
    kinds: list[str] | None = None
    # boxes | masks | mixed: whether training may see masks that a person drew; boxes is what this project is about,
    # mixed shows those of the images that say "supervision": "masks" (mwsis.data.coco_json)
    supervision: str = "boxes"
    # COCO file of masks made elsewhere (mwsis.data.given_masks); images with points have their boxes from it, too;
    # null = with supervision=masks the data set's own
    masks: str | None = None
    # depth of the training images, for methods that look at it: lidar (that of the sweep's points), or a folder of maps
    # made by tools/depth.py (mwsis.data.depth_files); never used to predict
    depth: str | None = None
    # training frames, evenly spread, on which the quality of the labels is measured; null = all
    quality_frames: int | None = None
    # digest of the frames of both splits (mwsis.data.content) and what made them, for benchmarks: others are refused;
    # null = any frames
    expected_content: str | None = None
    expected_made_by: str | None = None


@dataclass
class BranchOptimConfig:
    """Optimiser of one branch."""

    kind: str = MISSING  # sgd | adamw
    lr: float = MISSING
    momentum: float = 0.9
    weight_decay: float = 0.0
    # linear or cosine rise from lr*start_factor to lr over `rise` of the run, then cosine to lr*final_factor
    rise: float = 0.1
    start_factor: float = 0.1
    final_factor: float = 0.0
    # L2 norm; 0 = off
    clip_norm: float = 0.0


@dataclass
class MaskRCNNConfig:
    """Mask R-CNN in the place of CondInst, for training on given masks (method=full); by default as published."""

    # sides of the anchors on the maps of stride 4, 8, 16, 32 and 64, px
    anchor_sizes: list[float] = field(default_factory=lambda: [32.0, 64.0, 128.0, 256.0, 512.0])
    # of an image: anchors that proposals learn from, proposals kept, proposals that classes, boxes and masks learn from
    anchors_per_image: int = 256
    proposals_train: int = 2000
    proposals_test: int = 1000
    boxes_per_image: int = 512
    # widths of the heads
    box_channels: int = 1024
    mask_channels: int = 256


@dataclass
class CameraConfig:
    """CondInst: FCOS detector with a dynamic mask head; or Mask R-CNN."""

    backbone: str = "resnet18"
    # ImageNet weights that a new run starts from: true (timm's cache or the network) | a file of timm's weights | false
    pretrained: bool | str = False
    # batch | frozen | frozen_affine | group: normalisation of the backbone (frozen: statistics only, frozen_affine:
    # scale and shift too); group learns fastest from scratch on few images
    norm: str = "batch"
    # stem and first stages that are not trained
    frozen_stages: int = 0
    # imagenet | half | caffe: how the backbone's weights want pixels
    pixel_style: str = "imagenet"
    channels: int = 64
    # weights that a new run starts from, a file of tools/import_weights.py (mmdet, another run); null = none
    weights: str | None = None
    # an mmdet configuration (CondInst, BoxInst) whose modules are the camera branch (extra `mmdet`); null = ours
    mmdet: str | None = None
    # Mask R-CNN in the place of CondInst: what only that has; what only CondInst has is then not used. null = CondInst
    mask_rcnn: MaskRCNNConfig | None = None
    # depth of the shared mask features and width of the mask networks (BoxInst: 16, 8; CondInst: 8, 8; mmdet's BoxInst:
    # 16, 16)
    mask_channels: int = 16
    mask_hidden: int = 8
    # half | product: mask networks have a second output, how near each cell is, and the mask's logit is multiplied by
    # (1 + nearness) / 2 or, as Pseudo-Depth has it, by nearness; null = no such output
    depth_gate: str | None = None
    # initial class score (FCOS: .01)
    prior: float = 0.01
    # initial value of the (scaled, rectified) distances to the box sides, in strides
    box_bias: float = 0.0
    head_convs: int = 2
    # box | class: the tower that says how central a location is (CondInst: box, MWSIS: class)
    centerness_tower: str = "box"
    # mask branch: inner depth and number of convolutions (published: 128, 4)
    mask_branch_channels: int = 64
    mask_branch_convs: int = 2
    # masks start from one random mask network instead of from none (published: false)
    random_mask_start: bool = True
    # FCOS: largest side regressed on each pyramid level, px of the network input
    size_ranges: list[float] = field(default_factory=lambda: [64.0, 128.0, 256.0, 512.0])
    masks_per_image: int = 64
    # factors of two losses (published: 1); more lets a short training spend itself on where objects end
    box_weight: float = 1.0
    projection_weight: float = 1.0
    # distance of the pixel pairs compared by colour, cells of 4 px (BoxInst: 2, for images 1333 px wide)
    pair_dilation: int = 2
    bn_momentum: float = 0.1
    # candidates at or below are dropped at prediction (CondInst: .05)
    score_threshold: float = 0.05
    # overlap above which the weaker of two boxes of a class is dropped
    nms_iou: float = 0.6
    # `_target_` of what sharpens predicted masks; null = nothing, as published
    refinement: Any = None
    optim: BranchOptimConfig = field(default_factory=BranchOptimConfig)


@dataclass
class LidarConfig:
    """Sparse U-Net with a point head."""

    network: str = "unet_v2"
    # metres, x y z
    voxel_size: list[float] = MISSING
    # weights of voxel encoder and backbone that a new run starts from, a file of tools/import_weights.py (OpenPCDet,
    # mmdet3d, SST, det3d); null = none
    weights: str | None = None
    hidden: int = 64
    bn_momentum: float = 0.1
    semantic_weight: float = 100.0
    # focal loss (MWSIS: gamma 3, alpha .8) and initial class score
    focal_gamma: float = 3.0
    focal_alpha: float = 0.8
    prior: float = 0.01
    # factor of each class's focal loss, in class order; empty = 1 each, as published
    class_weights: list[float] = field(default_factory=list)
    vote_weight: float = 1.0
    # an instance needs this many points
    min_points: int = 3
    optim: BranchOptimConfig = field(default_factory=BranchOptimConfig)


@dataclass
class TermConfig:
    """A loss term and its schedule in fractions of the run."""

    weight: float = 1.0
    start: float = 0.0
    length: float = 0.0
    enabled: bool = True
    # `_target_` of a camera term; null for the terms that `fusion.step` owns
    term: Any = None


@dataclass
class CrossModalConfig:
    """Directions of the cross-modal distillation (CSCS)."""

    camera_to_lidar: bool = True
    lidar_to_camera: bool = True
    # points that something nearer hides from the camera take part (published: true)
    hidden_pairs: bool = True
    # cells of 4 px by which projected points may be off: pairs near a mask's border count less (published: 0)
    border_reach: int = 0


@dataclass
class MethodConfig:
    """Labels, losses and teachers: a method is one such file."""

    name: str = MISSING
    # which branches are trained
    branches: list[str] = field(default_factory=lambda: ["camera", "lidar"])
    # EMA teachers; false = the student is its own teacher
    ema: bool = True
    # spatial pseudo labels; false = every point inside a 2D box
    spg: bool = True
    # by which recipe: published = MWSIS's own (fusion.spatial_labels), default = ours (fusion.default_labels)
    labels: str = "default"
    # the ring-segment half of the published ones; false = clustering alone
    spg_rings: bool = True
    # camera pseudo masks from the teacher's positives
    ipg: bool = True
    # point voting correction from the teacher's history
    pvc: bool = True
    # ring-segment correction of predictions at test time, of pseudo labels at training time (published: both off), and
    # of which classes (published: without pedestrians)
    rsc: bool = False
    rsc_labels: bool = False
    rsc_classes: list[str] = field(default_factory=lambda: ["Vehicle", "Cyclist"])
    cscs: CrossModalConfig = field(default_factory=CrossModalConfig)
    # EMA decay = min(1 - 1 / (window * steps), 1 - exp(-progress / ramp)), both fractions of the run
    # (published: decay .999 of 71,088 steps = window .014)
    ema_window: float = 0.014
    ema_ramp: float = 0.035
    # the teacher's point votes are recorded from here (published: 0), corrections from them start at pvc_start
    pvc_record: float = 0.0
    pvc_start: float = 0.5
    # a point is corrected when so many of its last so many votes, 4 at most, are the same (published: 4 of 4)
    pvc_agree: int = 4
    pvc_of: int = 4
    # `_target_` of what makes the images that the camera student sees (camera.color_jitter); null = the teacher's
    strong_view: Any = None
    # `_target_` of the source of camera pseudo masks (camera.sources)
    mask_source: Any = None
    # `_target_` of what pastes objects of earlier images into the images (camera.copy_paste); null = nothing
    copy_paste: Any = None
    # sharpen these masks by colours within the boxes (camera.sources.Refined; published: false)
    refine_masks: bool = False
    camera_terms: dict[str, TermConfig] = field(default_factory=dict)
    lidar_to_camera: TermConfig = field(default_factory=TermConfig)
    camera_to_lidar: TermConfig = field(default_factory=TermConfig)
    # `_target_` of the settings of a training from points (tools/points.py); null = from boxes
    point_to_mask: Any = None


@dataclass
class TrainerConfig:
    """How long, on what, and how often the run is saved."""

    max_steps: int = MISSING
    # of all processes together
    frames_per_step: int = 1
    # equal parts that these are run in, one after the other, with one optimiser step; close to one part but not the
    # same: losses are averaged within each part, then over the parts, and batch norms see one part at a time
    accumulate: int = 1
    # steps whose losses or gradients are not finite change nothing; more than so many in a run end it
    max_skipped_steps: int = 20
    # the LiDAR branch trains on every k-th step (published: 1); a CPU spends what that saves on images
    lidar_every: int = 1
    accelerator: str = "auto"
    # per machine; several share the frames of a step and give the result of one
    devices: int = 1
    nodes: int = 1
    # started by srun: SIGUSR1 saves and requeues the job, which then continues
    slurm: bool = False
    # batch norms use the statistics of the whole step instead of one process's frames
    shared_norms: bool = True
    # 32 | bf16-camera: the camera network in bfloat16; its masks, its losses and the sparse network stay in float32
    precision: str = "32"
    # torch | scatter: what adds up points within voxels and objects; scatter is torch-scatter (extra `scatter`)
    segment_ops: str = "torch"
    # of each process
    workers: int = 0
    checkpoint_every: int = 50
    log_every: int = 1
    # frames drawn in the report
    report_frames: int = 3
    # teacher and student are scored each time this share of the run is done (0.25: four times); 0 = only at its end
    score_every: float = 0.0
    # validation frames, evenly spread, that these scores are measured on
    score_frames: int = 2


@dataclass
class DetectorConfig:
    """CenterPoint; values as OpenPCDet has them for Waymo."""

    # two blocks of the neck: 3x3 convolutions after the first, channels, channels after upsampling
    neck_layers: list[int] = field(default_factory=lambda: [5, 5])
    neck_channels: list[int] = field(default_factory=lambda: [128, 256])
    neck_up_channels: list[int] = field(default_factory=lambda: [256, 256])
    # heat map cells per cell of the encoder's bird's-eye view (8 voxels), along each axis
    upsample: int = 1
    head_channels: int = 64
    # show the head what the backbone's decoder says of the voxels above each cell, too
    decoder: bool = False
    # lowest score of a box, and overlap above which the weaker of two boxes of a class is dropped
    score_threshold: float = 0.1
    nms_iou: float = 0.7


@dataclass
class FinetuneConfig:
    """Supervised training from given labels (tools/finetune.py); null in a run that trains from 2D boxes."""

    # detection | instance | semantic
    task: str = MISSING
    # export folder whose backbone training starts from, checkpoint whose LiDAR branch it starts from, or scratch
    init: str = SCRATCH
    # loaded layers before a norm get the length of fresh ones, so that one learning rate means the same for both
    initial_length: bool = False
    # share of the training segments whose labels are used; subsets of one seed are nested
    label_fraction: float = 1.0
    # factors of lidar.optim.lr; each is a run of its own
    lr_scale: list[float] = field(default_factory=lambda: [1.0])
    # boxes of each class that a sweep should hold after pasting objects of other labelled sweeps; empty = no pasting
    # (OpenPCDet: 15, 10, 10)
    paste: list[int] = field(default_factory=list)
    # points of a pasted object, at least
    paste_min_points: int = 5
    detector: DetectorConfig = field(default_factory=DetectorConfig)


@dataclass
class RunConfig:
    """Everything that decides a run."""

    seed: int = 0
    # run folder; null = runs/<method>-<data>-s<seed>-<time>
    out: str | None = None
    # run folder to continue; everything else is then read from its config.yaml
    resume: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    lidar: LidarConfig = field(default_factory=LidarConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    finetune: FinetuneConfig | None = None


def register_schemas() -> None:
    """Tell hydra the schema, so that a wrong type or key is refused when the configuration is composed.

    Configuration files can ask ``${is_null:${key}}``.
    """
    OmegaConf.register_new_resolver("is_null", lambda value: value is None, replace=True)
    ConfigStore.instance().store(name="run_schema", node=RunConfig)


def typed(config: DictConfig) -> RunConfig:
    """Return the composed configuration as its dataclass.

    Raises:
        ConfigError: a value is out of its range or two settings exclude each other.
    """
    run: RunConfig = OmegaConf.to_object(config)  # type: ignore[assignment]
    unknown = [branch for branch in run.method.branches if branch not in BRANCHES]
    if unknown or not run.method.branches:
        raise ConfigError(f"method.branches: expected some of {list(BRANCHES)}, got {run.method.branches}")
    if run.lidar.network not in NETWORKS:
        raise ConfigError(f"lidar.network: no '{run.lidar.network}'" + closest_name(run.lidar.network, NETWORKS))
    for name, value in (
        ("trainer.max_steps", run.trainer.max_steps),
        ("trainer.frames_per_step", run.trainer.frames_per_step),
        ("trainer.accumulate", run.trainer.accumulate),
        ("trainer.lidar_every", run.trainer.lidar_every),
        ("trainer.checkpoint_every", run.trainer.checkpoint_every),
        ("trainer.log_every", run.trainer.log_every),
        ("trainer.score_frames", run.trainer.score_frames),
        ("trainer.devices", run.trainer.devices),
        ("trainer.nodes", run.trainer.nodes),
    ):
        if value < 1:
            raise ConfigError(f"{name}: expected at least 1, got {value}")
    if not 0 <= run.trainer.score_every <= 1:
        raise ConfigError(f"trainer.score_every: expected a share of the run, 0 to 1, got {run.trainer.score_every}")
    if run.trainer.max_skipped_steps < 0:
        raise ConfigError(f"trainer.max_skipped_steps: expected at least 0, got {run.trainer.max_skipped_steps}")
    shares = run.trainer.devices * run.trainer.nodes * run.trainer.accumulate
    if run.trainer.frames_per_step % shares:
        raise ConfigError(
            "trainer.frames_per_step: expected a multiple of trainer.devices x trainer.nodes x trainer.accumulate "
            f"({shares}), got {run.trainer.frames_per_step}"
        )
    if run.trainer.precision not in PRECISIONS:
        raise ConfigError(f"trainer.precision: expected one of {list(PRECISIONS)}, got {run.trainer.precision}")
    if run.trainer.segment_ops not in SEGMENT_OPS:
        raise ConfigError(f"trainer.segment_ops: expected one of {list(SEGMENT_OPS)}, got {run.trainer.segment_ops}")
    if run.trainer.segment_ops == "scatter" and find_spec("torch_scatter") is None:
        raise ConfigError("trainer.segment_ops=scatter: torch-scatter is not installed; install the extra 'scatter'")
    if run.data.supervision not in SUPERVISIONS:
        raise ConfigError(f"data.supervision: expected one of {list(SUPERVISIONS)}, got {run.data.supervision}")
    pad_to = run.data.pad_to
    if pad_to is not None and (len(pad_to) != 2 or any(side < 32 or side % 32 for side in pad_to)):
        raise ConfigError(f"data.pad_to: expected height and width, multiples of 32, or null, got {pad_to}")
    if run.data.cameras_per_frame is not None and run.data.cameras_per_frame < 1:
        raise ConfigError(f"data.cameras_per_frame: expected at least 1 or null, got {run.data.cameras_per_frame}")
    if run.data.crop is not None and (len(run.data.crop) != 2 or min(run.data.crop) < 1):
        raise ConfigError(f"data.crop: expected rows and columns in pixels, such as [256,384], got {run.data.crop}")
    _check_method(run.method)
    if run.finetune is not None:
        _check_finetune(run.finetune)
        if run.trainer.score_every:
            raise ConfigError("trainer.score_every: fine-tuning is scored at its end only; leave it out")
        if run.lidar.weights is not None:
            raise ConfigError("lidar.weights: fine-tuning starts from finetune.init; leave lidar.weights out")
    return run


def _check_method(method: MethodConfig) -> None:
    for name, switched_on, branch in (
        ("method.cscs.lidar_to_camera", method.cscs.lidar_to_camera, "lidar"),
        ("method.cscs.camera_to_lidar", method.cscs.camera_to_lidar, "camera"),
        ("method.rsc", method.rsc, "lidar"),
        ("method.rsc_labels", method.rsc_labels, "lidar"),
    ):
        if switched_on and branch not in method.branches:
            raise ConfigError(f"{name}=true needs '{branch}' in method.branches")
    if (method.rsc or method.rsc_labels) and not method.rsc_classes:
        raise ConfigError("method.rsc_classes: expected at least one class, got []; or switch both corrections off")
    if not 1 <= method.pvc_of <= VOTES_KEPT:
        raise ConfigError(f"method.pvc_of: expected 1 to {VOTES_KEPT}, got {method.pvc_of}")
    if not method.pvc_of < 2 * method.pvc_agree <= 2 * method.pvc_of:
        raise ConfigError(
            f"method.pvc_agree: expected more than half of method.pvc_of={method.pvc_of} and no more than all, got "
            f"{method.pvc_agree}"
        )


def _check_finetune(finetune: FinetuneConfig) -> None:
    if finetune.task not in TASKS:
        raise ConfigError(f"finetune.task: no '{finetune.task}'" + closest_name(finetune.task, TASKS))
    if not 0 < finetune.label_fraction <= 1:
        raise ConfigError(f"finetune.label_fraction: expected more than 0, at most 1, got {finetune.label_fraction}")
    scales = finetune.lr_scale
    if not scales or min(scales) <= 0 or len(set(scales)) < len(scales):
        raise ConfigError(f"finetune.lr_scale: expected different positive factors, got {scales}")
    if finetune.paste and min(finetune.paste) < 0:
        raise ConfigError(f"finetune.paste: expected a number of boxes for each class, got {finetune.paste}")
    if not 0 <= finetune.detector.score_threshold < 1 or not 0 <= finetune.detector.nms_iou <= 1:
        raise ConfigError("finetune.detector: expected 0 <= score_threshold < 1 and 0 <= nms_iou <= 1")


def labels_used(run: RunConfig) -> str:
    """Say in words which labels of the data set training saw."""
    if run.finetune is not None:
        kind = "3D boxes" if run.finetune.task == "detection" else "point labels"
        before = "" if run.finetune.init == SCRATCH else ", after pretraining"
        return f"gt_ {kind} of {run.finetune.label_fraction:.0%} of the segments{before}"
    if run.data.supervision == "mixed":
        made = "" if run.data.masks is None else f" (and the pseudo_ masks of {run.data.masks})"
        return f"what each image has: gt_ masks, 2D boxes or points{made}"
    if run.data.masks is not None:
        made = "gt_ or pseudo_" if run.data.supervision == "masks" else "pseudo_"
        return f"2D boxes and the {made} masks of {run.data.masks}"
    return "2D boxes and their gt_ masks" if run.data.supervision == "masks" else "2D boxes only"


def instantiated(node: Any, where: str) -> Any:
    """Return the object that a `_target_` node describes.

    Raises:
        ConfigError: it cannot be made; ``where`` names the setting.
    """
    try:
        return instantiate(node)
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, ConfigError | ValueError):
            raise cause from None
        raise ConfigError(f"{where}: {' '.join(str(cause).split())}") from error
