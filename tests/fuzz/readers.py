"""What can be handed to this project from outside, each with a small valid example and everything that reads it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from camera.transforms import decode_image
from mwsis.core.frame import Frame
from mwsis.core.instances import PointLabels
from mwsis.core.weights import read_checkpoint
from mwsis.data.coco import CocoSource
from mwsis.data.custom import CustomSource
from mwsis.data.depth_files import DepthFolder, DepthWriter
from mwsis.data.given_masks import MaskFile
from mwsis.data.kitti import KittiSource
from mwsis.data.label_cache import LabelCache
from mwsis.data.label_files import LabelWriter, read_labels
from mwsis.data.nuscenes import NuscenesSource
from mwsis.data.source import Source
from mwsis.data.store import FrameStore
from mwsis.data.street import StreetSource
from mwsis.data.waymo import v1_write, v2
from mwsis.data.waymo.source import WaymoV1Source, WaymoV2Source
from mwsis.training.checkpoint import read_run_checkpoint
from mwsis.training.commands import compose_run
from mwsis.training.config import typed
from tests.data.coco_folder import SETTINGS, coco_folder
from tests.data.custom_folder import write_folder
from tests.data.frames_for_tests import RandomSource, converted
from tests.data.test_kitti import make_folder
from tests.data.test_nuscenes import make_folder as nuscenes_folder
from tests.data.waymo_drive import SEGMENT, jpeg, make_drive


@dataclass(frozen=True)
class Reader:
    """A kind of input.

    Attributes:
        make: writes a valid example into a folder.
        files: pattern of the files in it that are to be damaged.
        read: reads all of the example; the seed is for inputs that are no files.
        is_one_case: nothing depends on the seed.
    """

    make: Callable[[Path], object]
    files: str
    read: Callable[[Path, int], object]
    is_one_case: bool = False

    def cases(self, count: int) -> range:
        """Return the seeds of that many different cases, or as many as there are."""
        return range(1 if self.is_one_case else count)


def every_frame(source: Source, splits: tuple[str, ...] = ("train",)) -> None:
    source.check()
    for split in splits:
        for frame_id in source.frame_ids(split):
            for view in source.read(frame_id).cameras:
                if view.image is not None:
                    decode_image(view.image, frame_id)


def write_waymo_v1(root: Path) -> None:
    for split, segment in (("training", SEGMENT), ("validation", "3003")):
        (root / split).mkdir()
        path = root / split / f"segment-{segment}_with_camera_labels.tfrecord"
        v1_write.write_segment(path, [replace(make_drive(0), segment=segment)])


def write_waymo_v2(root: Path) -> None:
    for split, segment in (("training", SEGMENT), ("validation", "3003")):
        v2.write_segment(root / split, [replace(make_drive(0), segment=segment)])


def write_store(root: Path) -> None:
    plan = converted(RandomSource(), root / "home")
    (root / "frames.txt").write_text(str(plan.frames.root.relative_to(root)))
    (root / "labels.txt").write_text(str(plan.labels.root.relative_to(root)))


def read_stores(root: Path, _: int) -> None:
    frames = FrameStore(root / (root / "frames.txt").read_text())
    labels = LabelCache(root / (root / "labels.txt").read_text())
    for index in range(len(frames)):
        frames[index]
    for index in range(len(labels)):
        labels[index]


@cache
def street_frames() -> dict[str, list[Frame]]:
    """Return a small frame of each split."""
    sizes = {f"{split}_{what}": 1 for split in ("train", "val") for what in ("segments", "frames_per_segment")}
    street = StreetSource(**sizes, lidar_columns=60, image_width=64)
    return {split: [street.read(frame_id) for frame_id in street.frame_ids(split)] for split in ("train", "val")}


def own(suffix: str, files: str) -> Reader:
    """Return one's own recordings with sweeps of a format."""
    return Reader(
        lambda root: write_folder(root, street_frames(), ("Vehicle", "Pedestrian", "Cyclist"), suffix),
        files,
        lambda root, _: every_frame(CustomSource(root)),
    )


def write_images(root: Path) -> None:
    (root / "a.jpg").write_bytes(jpeg(64, 48))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(root / "b.png")


def read_images(root: Path, _: int) -> None:
    for path in sorted(root.iterdir()):
        decode_image(path.read_bytes(), path.name)


def write_bomb(root: Path) -> None:
    Image.new("L", (20_000, 20_000)).save(root / "bomb.png")


def write_labels(root: Path) -> None:
    writer = LabelWriter(root / "labels", ["Vehicle"])
    writer.add("a", PointLabels(torch.tensor([0, -1, 0]), torch.tensor([0, -1, 1])))
    writer.finish({"source": "tests"})


def write_depth(root: Path) -> None:
    writer = DepthWriter(root / "depth", metric=True, made_by="tests")
    writer.add("a", "FRONT", torch.rand(24, 32) * 50 + 1)
    writer.finish()


def write_mask_file(root: Path) -> None:
    content = json.loads((coco_folder(root / "coco") / SETTINGS["annotations"]["train"]).read_bytes())
    for entry in content["annotations"]:
        entry |= {"mask_source": "pseudo_sam", "weight": 0.5}
    content["categories"] = [{"id": number["id"], "name": number["name"]} for number in content["categories"]]
    (root / "masks.json").write_text(json.dumps(content))


def write_checkpoint(root: Path) -> None:
    torch.save({"format": "mwsis-run-1", "model": {"weight": torch.rand(8, 8)}, "config": "seed: 0"}, root / "a.ckpt")


def read_checkpoints(root: Path, _: int) -> None:
    read_checkpoint(root / "a.ckpt", keep_foreign_out=True)
    read_run_checkpoint(root / "a.ckpt")


OVERRIDES = (
    "seed=1", "trainer.max_steps=5", "method=boxinst", "camera.refinement=null", "data.source.seed=3",
    "lidar.voxel_size=[0.1,0.1,0.2]", "camera.optim.lr=1e-3", "method.camera_terms.projection.weight=2",
)  # fmt: skip
ALPHABET = "abz019._=[]{}$~+-@:,'\"\\ \t\x00é"


def read_overrides(_: Path, seed: int) -> None:
    rng = random.Random(seed)
    overrides = rng.sample(OVERRIDES, 2)
    text = list(overrides[0])
    for _number in range(rng.choice((1, 2, 5))):
        text.insert(rng.randrange(len(text) + 1), rng.choice(ALPHABET))
        if rng.random() < 0.3:
            del text[rng.randrange(len(text))]
    typed(compose_run(["".join(text), overrides[1]]))


READERS = {
    "Waymo v1 (TFRecord, protobuf)": Reader(
        write_waymo_v1, "training/*.tfrecord", lambda root, _: every_frame(WaymoV1Source(root, frames="all"))
    ),
    "Waymo v2 (parquet)": Reader(
        write_waymo_v2, "training/*/*.parquet", lambda root, _: every_frame(WaymoV2Source(root, frames="all"))
    ),
    "KITTI sweeps": Reader(make_folder, "training/velodyne/*", lambda root, _: every_frame(KittiSource(root, 1))),
    "KITTI labels": Reader(make_folder, "training/label_2/*", lambda root, _: every_frame(KittiSource(root, 1))),
    "KITTI calibration": Reader(make_folder, "training/calib/*", lambda root, _: every_frame(KittiSource(root, 1))),
    "KITTI images": Reader(make_folder, "training/image_2/*", lambda root, _: every_frame(KittiSource(root, 1))),
    "COCO annotations": Reader(
        coco_folder, "instances_train2017.json", lambda root, _: every_frame(CocoSource(root, **SETTINGS))
    ),
    "COCO masks from elsewhere": Reader(
        write_mask_file, "masks.json", lambda root, _: MaskFile(root / "masks.json", ["car", "person"], False)
    ),
    "frame store and label cache (Arrow)": Reader(write_store, "home/**/*.*", read_stores),
    "nuScenes tables": Reader(
        lambda root: nuscenes_folder(root).save(),
        "v1.0-mini/*.json",
        lambda root, _: every_frame(NuscenesSource(root, "v1.0-mini")),
    ),
    "nuScenes sweeps": Reader(
        lambda root: nuscenes_folder(root).save(),
        "samples/LIDAR_TOP/*",
        lambda root, _: every_frame(NuscenesSource(root, "v1.0-mini")),
    ),
    "own calibration, boxes, 3D boxes": own(".bin", "**/*.json"),
    "own splits and point labels": own(".bin", "**/*.[tl][xa]*"),
    "own sweeps, .npy": own(".npy", "sweeps/*"),
    "own sweeps, .pcd": own(".pcd", "sweeps/*"),
    "own sweeps, .ply": own(".ascii.ply", "sweeps/*"),
    "JPEG and PNG": Reader(write_images, "*", read_images),
    "decompression bomb": Reader(write_bomb, "nothing", read_images, is_one_case=True),
    "point labels": Reader(
        write_labels, "labels/*.label", lambda root, _: [read_labels(path) for path in root.glob("labels/*.label")]
    ),
    "depth maps": Reader(
        write_depth, "depth/**/*.*", lambda root, _: DepthFolder(root / "depth").of("a", "FRONT", 48, 64)
    ),
    "checkpoints": Reader(write_checkpoint, "a.ckpt", read_checkpoints),
    "settings of a command": Reader(lambda root: None, "nothing", read_overrides),
}
