"""Images with boxes and masks in COCO's format as a data set of one camera and no LiDAR.

`CocoSource` makes frames: a sweep of no points, the image as it was encoded, boxes for training and masks as truth.
What an annotation file says, and what is wrong with it, is `coco_json.py`. Next: `store.py`, where frames go.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from mwsis.core.errors import ConfigError, DataError, closest_name
from mwsis.core.frame import (
    CameraView,
    Frame,
    FrameTruth,
    ImageTruth,
    LidarGeometry,
    PixelMap,
    PointCloud,
    PointFeature,
)
from mwsis.core.geometry import CameraModel
from mwsis.core.instances import IGNORE, Boxes2D, MaskSet
from mwsis.data.classes import class_groups, labels_by_category
from mwsis.data.coco_json import (
    BOXES,
    MASKS,
    POINTS,
    Annotation,
    Instances,
    ListedImage,
    decoded_mask,
    read_instances,
)
from mwsis.data.given_masks import MaskFile
from mwsis.data.image_files import IMAGE_FORMATS, image_size

__all__ = [
    "CocoSource",
    "annotation_file",
    "as_given",
    "corners_inside",
    "labelled_boxes",
    "masks_of",
]

READER_VERSION = 1
"""Part of the fingerprint: raise it when the frames read from unchanged files change."""
IMAGES_PER_SEGMENT = 100
CAMERA = "image"
ANNOTATIONS_FOLDER = "annotations"
NO_LIDAR = LidarGeometry(num_rings=1, num_columns=1)
BBox = tuple[float, float, float, float]
"""x, y, width, height, pixels."""


class CocoSource:
    """The images of COCO annotation files; each is a frame of one camera and no points.

    Boxes are COCO's x, y, width, height as half-open corners, clipped to the image; what is then empty is left out of
    boxes and truth and counted (`report`). Crowds are ignore regions: as boxes without a class, in the truth with their
    mask and class, since COCO excuses only detections of that class there. Categories of no class are left out.

    Truth: masks as pycocotools rasterises them; the id of an object is the index of its box, -1 for crowds. A file
    without any segmentation gives frames without truth. COCO has no calibration: the camera is made up.

    Images may say what they are labelled with (`coco_json.py`). Of one with points neither boxes nor masks are read:
    its boxes are those of ``point_masks``, found by the ids of image and annotation, and it has no truth. While one of
    its objects has none, nobody knows how far that reaches, and the whole image becomes an ignore region: where no box
    is, nothing is taught as background.

    Args:
        root: the folder the other paths are relative to.
        annotations: by split, an annotation file under ``root`` or, as COCO unpacks it, under ``root/annotations``.
        images: by split, the folder of its images; a key for each of ``annotations``.
        classes: in the order of the labels, the name of a category, or of a class with the categories it is made of:
            ``["person", {"vehicle": ["car", "bus"]}]``; None takes every category, in the order of their ids.
        point_masks: a COCO file of masks made of points (tools/points.py); unused where no image says that it has some.

    Raises:
        DataError: a file is missing, is no annotation file, or has no such category; or see `given_masks.MaskFile`.
        ConfigError: the settings are no splits or no classes.

    Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; its data format page.
    """

    name = "coco"
    class_names: tuple[str, ...] = ()

    def __init__(
        self,
        root: str | Path,
        annotations: Mapping[str, str],
        images: Mapping[str, str],
        classes: Sequence[str | Mapping[str, Sequence[str]]] | None = None,
        point_masks: str | Path | None = None,
    ) -> None:
        self.root = Path(root)
        self._settings = (dict(annotations), dict(images), None if classes is None else class_groups(classes))
        if not self.root.is_dir():
            raise DataError(f"{root}: no such folder; expected one with COCO's annotation files and images")
        if not annotations or set(annotations) != set(images):
            raise ConfigError(
                f"annotations, images: expected the same splits, got {sorted(annotations)} and {sorted(images)}"
            )
        self._files = {split: annotation_file(self.root, file) for split, file in annotations.items()}
        self._folders = {split: self.root / folder for split, folder in images.items()}
        groups = self._settings[2] or _every_category(self._instances(next(iter(self._files))))
        self.class_names = tuple(groups)
        self._label_of = {
            split: labels_by_category(self._instances(split).categories, groups, path)
            for split, path in self._files.items()
        }
        listed = (image for split in self._files for image in self._instances(split).images)
        self._point_masks = None
        if point_masks is not None and any(image.supervision == POINTS for image in listed):
            # Whether masks of the source `gt` may be used is decided where training is given them.
            self._point_masks = MaskFile(Path(point_masks).resolve(), self.class_names, allow_truth=True)

    def __reduce__(self) -> tuple[type[CocoSource], tuple[object, ...]]:
        """Travel to workers without the annotations, which each worker reads once."""
        annotations, images, groups = self._settings
        classes = None if groups is None else [{name: list(members)} for name, members in groups.items()]
        masks = None if self._point_masks is None else self._point_masks.path
        return CocoSource, (self.root, annotations, images, classes, masks)

    def frame_ids(self, split: str) -> list[str]:
        """Return ``<split>/<image id>`` in the order of the annotation file.

        Raises:
            DataError: there is no such split.
        """
        return [f"{split}/{image.id}" for image in self._listed(split).images]

    def segment_of(self, frame_id: str) -> str:
        """Return the block of consecutive images of one split that a frame belongs to.

        Raises:
            DataError: there is no such frame.
        """
        split, index = self._place(frame_id)
        return _segment_name(split, index // IMAGES_PER_SEGMENT)

    def unreadable(self, split: str) -> dict[str, str]:
        """Return nothing: an annotation file that cannot be read is refused at once."""
        self._listed(split)
        return {}

    def identity(self) -> str:
        """Return a digest of the reader, the folder and the settings."""
        masks = () if self._point_masks is None else (str(self._point_masks.path),)
        return _digest(str(self.root.resolve()), *self._settings, *masks).hexdigest()[:32]

    def fingerprint(self) -> str:
        """Return a digest of settings, annotations, and the sizes and times of images."""
        segments = [_segment_name(split, block) for split in self._files for block in range(self._num_blocks(split))]
        return _digest(*(self.segment_fingerprint(segment) for segment in segments)).hexdigest()[:32]

    def segment_fingerprint(self, segment: str) -> str:
        """Return the same of the images of one segment."""
        split, _, block = segment.rpartition("_")
        listed = self._listed(split)
        digest = _digest(split, self._settings[2])
        for image in _block(listed.images, int(block)):
            state = self._image_path(split, image).stat()
            digest.update(f"{image} {state.st_size} {state.st_mtime_ns}{image.supervision or ''}".encode())
            for annotation, box in self._boxes(split, image):
                if image.supervision == POINTS:
                    digest.update(repr((annotation.category, annotation.crowd, box)).encode())
                else:
                    annotation.feed(digest)
        return digest.hexdigest()[:32]

    def check(self) -> None:
        """Verify that every image is there; the annotation files were checked when they were read.

        Raises:
            DataError: the first image file that is missing.
        """
        for split in self._files:
            for image in self._listed(split).images:
                self._image_path(split, image)

    def report(self, split: str) -> dict[str, int]:
        """Return how many images and boxes a split has, and how many boxes are left out.

        Raises:
            DataError: there is no such split.
        """
        counts = dict.fromkeys(
            ("images", "boxes", "crowds", "degenerate_boxes_left_out", "boxes_of_other_categories"), 0
        )
        listed = self._listed(split)
        for image in listed.images:
            kept, of_classes = self._kept(split, image), self._boxes(split, image)
            counts["images"] += 1
            counts["boxes"] += len(kept)
            counts["crowds"] += sum(one.crowd for one, _ in kept)
            counts["degenerate_boxes_left_out"] += sum(box is not None for _, box in of_classes) - len(kept)
            counts["boxes_of_other_categories"] += len(listed.annotations[image.id]) - len(of_classes)
        return counts

    def labelled_images(self, split: str) -> dict[str, int]:
        """Return how many images have ``masks``, ``boxes`` and ``points``; nothing where no image says.

        ``unknown_extent`` counts those with points of which an object has no mask in ``point_masks``. An image that
        does not say, beside others that do, counts as one with boxes.

        Raises:
            DataError: there is no such split.
        """
        images = self._listed(split).images
        if all(image.supervision is None for image in images):
            return {}
        counts = Counter(image.supervision or BOXES for image in images)
        unknown = sum(any(box is None for _, box in self._boxes(split, image)) for image in images)
        return {kind: counts[kind] for kind in (MASKS, BOXES, POINTS)} | {"unknown_extent": unknown}

    def category_ids(self, split: str) -> list[int]:
        """Return the id of each class's category in a split's annotation file, of several that count as it the first.

        Raises:
            DataError: there is no such split.
        """
        self._listed(split)
        first: dict[int, int] = {}
        for category, label in self._label_of[split].items():
            first.setdefault(label, category)
        return [first[label] for label in range(len(self.class_names))]

    def read(self, frame_id: str) -> Frame:
        """Return one image as a frame.

        Raises:
            DataError: there is no such frame, its file is missing, no image or of another size than annotated, or a
                segmentation cannot be decoded.
        """
        split, index = self._place(frame_id)
        listed = self._listed(split)
        image = listed.images[index]
        path = self._image_path(split, image)
        encoded = path.read_bytes()
        _require_size(path, encoded, image)
        kept = self._kept(split, image)
        labelled = labelled_boxes(kept, self._label_of[split])
        given = as_given(labelled)
        if any(box is None for _, box in self._boxes(split, image)):
            given = _with_everything_ignored(given, image)
        truth = None
        if listed.has_truth(image):
            truth = _truth(labelled, masks_of(listed, image, [one for one, _ in kept]))
        return Frame(
            frame_id=frame_id,
            segment=self.segment_of(frame_id),
            lidar=NO_LIDAR,
            points=_no_points(),
            pixels=PixelMap(torch.zeros(0, 1, 2), torch.zeros(0, 1, dtype=torch.int8)),
            cameras=(CameraView(CAMERA, _made_up_camera(image), encoded, given, image.supervision or BOXES),),
            truth=truth,
        )

    def _instances(self, split: str) -> Instances:
        path = self._files[split]
        state = path.stat()
        return read_instances(path, state.st_size, state.st_mtime_ns)

    def _listed(self, split: str) -> Instances:
        if split not in self._files:
            raise DataError(f"{self.root}: no split '{split}'{closest_name(split, self._files)}")
        return self._instances(split)

    def _place(self, frame_id: str) -> tuple[str, int]:
        split, _, image_id = frame_id.partition("/")
        index = self._listed(split).index.get(image_id)
        if index is None:
            raise DataError(f"{self._files[split]}: images: no image with id {image_id}")
        return split, index

    def _num_blocks(self, split: str) -> int:
        return -(-len(self._listed(split).images) // IMAGES_PER_SEGMENT)

    def _image_path(self, split: str, image: ListedImage) -> Path:
        path = self._folders[split] / image.file_name
        if not path.is_file():
            raise DataError(f"{path}: no such file, but {self._files[split]} lists it as image {image.id}")
        return path

    def _boxes(self, split: str, image: ListedImage) -> list[tuple[Annotation, BBox | None]]:
        """Return the annotations of an image that have a class, with x, y, width, height; None: unknown."""
        rows = [one for one in self._listed(split).annotations[image.id] if one.category in self._label_of[split]]
        if image.supervision != POINTS:
            return [(one, one.bbox) for one in rows]
        made = {} if self._point_masks is None else self._point_masks.boxes(image.id)
        return [(one, made.get(one.id)) for one in rows]

    def _kept(self, split: str, image: ListedImage) -> list[tuple[Annotation, list[float]]]:
        """Return the annotations of an image that have a class and a box, with the box's corners inside the image."""
        pairs = ((one, box and corners_inside(box, image)) for one, box in self._boxes(split, image))
        return [(one, corners) for one, corners in pairs if corners is not None]


# ---------------------------------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------------------------------


def _every_category(instances: Instances) -> dict[str, tuple[str, ...]]:
    return {name: (name,) for name in instances.categories}


def annotation_file(root: Path, file: str) -> Path:
    """Return where an annotation file is: under the root, or as COCO unpacks it.

    Raises:
        DataError: in neither place.
    """
    places = (root / file, root / ANNOTATIONS_FOLDER / file)
    for path in places:
        if path.is_file():
            return path
    raise DataError(f"{places[0]}: no such file, nor {places[1]}; expected COCO's instances as JSON")


def _segment_name(split: str, block: int) -> str:
    return f"{split}_{block:05d}"


def _block(images: Sequence[ListedImage], number: int) -> Sequence[ListedImage]:
    return images[number * IMAGES_PER_SEGMENT : (number + 1) * IMAGES_PER_SEGMENT]


def _digest(*facts: object) -> hashlib._Hash:
    return hashlib.sha256(repr((CocoSource.name, READER_VERSION, *facts)).encode())


# ---------------------------------------------------------------------------------------------------------------------
# Frames
# ---------------------------------------------------------------------------------------------------------------------


def corners_inside(bbox: BBox, image: ListedImage) -> list[float] | None:
    """Return x1, y1, x2, y2 of the part of a box that lies inside its image; None where that is empty."""
    x, y, width, height = bbox
    corners = np.array([x, y, x + width, y + height]).clip(0, [image.width, image.height] * 2)
    x1, y1, x2, y2 = corners.astype(np.float32).tolist()
    return [x1, y1, x2, y2] if x1 < x2 and y1 < y2 else None


def labelled_boxes(kept: Sequence[tuple[Annotation, list[float]]], label_of: Mapping[int, int]) -> Boxes2D:
    """Return annotations, given with their corners, as boxes; crowds are to be ignored and keep their class."""
    return Boxes2D(
        torch.tensor([corners for _, corners in kept], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([label_of[one.category] for one, _ in kept], dtype=torch.int64),
        torch.tensor([one.crowd for one, _ in kept], dtype=torch.bool),
    )


def as_given(labelled: Boxes2D) -> Boxes2D:
    """Return boxes as training sees them: what is to be ignored has no class."""
    return Boxes2D(labelled.boxes, torch.where(labelled.ignore, IGNORE, labelled.labels), labelled.ignore)


def _require_size(path: Path, encoded: bytes, image: ListedImage) -> None:
    size = image_size(encoded, IMAGE_FORMATS)
    if size is None:
        raise DataError(f"{path}: expected a JPEG or PNG image, got {len(encoded)} bytes that are none")
    if size != (image.width, image.height):
        got, listed = "{} x {}".format(*size), f"{image.width} x {image.height}"
        raise DataError(f"{path}: width, height: the annotations say {listed}, the file is {got}")


def _with_everything_ignored(labels: Boxes2D, image: ListedImage) -> Boxes2D:
    """Return the boxes of an image and, last of all, an ignore region that is the image."""
    whole = labels.boxes.new_tensor([[0, 0, image.width, image.height]])
    return Boxes2D(
        torch.cat([labels.boxes, whole]),
        torch.cat([labels.labels, labels.labels.new_tensor([IGNORE])]),
        torch.cat([labels.ignore, labels.ignore.new_tensor([True])]),
    )


def _no_points() -> PointCloud:
    return PointCloud(
        xyz=torch.zeros(0, 3),
        point_feats=torch.zeros(0, len(PointFeature)),
        ranges=torch.zeros(0),
        ring=torch.zeros(0, dtype=torch.int16),
        azimuth_column=torch.zeros(0, dtype=torch.int32),
        return_index=torch.zeros(0, dtype=torch.int8),
    )


def _made_up_camera(image: ListedImage) -> CameraModel:
    """Return a pinhole as wide as its focal length is long; nothing is ever projected into it."""
    width, height = image.width, image.height
    return CameraModel(
        width=width,
        height=height,
        intrinsics=torch.tensor([width, width, width / 2, height / 2], dtype=torch.float64),
        distortion=torch.zeros(5, dtype=torch.float64),
        camera_SE3_vehicle=torch.eye(4, dtype=torch.float64),
    )


def _truth(labels: Boxes2D, masks: MaskSet) -> FrameTruth:
    ids = torch.where(labels.ignore, -1, torch.arange(len(labels)))
    nothing = torch.zeros(0, dtype=torch.int64)
    return FrameTruth(
        semantic_labels=nothing,
        instance_ids=nothing,
        boxes3d=torch.zeros(0, 7),
        box3d_labels=nothing,
        box3d_ids=nothing,
        box_instance_ids=(ids,),
        images=(ImageTruth(labels, masks, ids),),
    )


def masks_of(listed: Instances, image: ListedImage, annotations: Sequence[Annotation]) -> MaskSet:
    """Return the masks of annotations that have a segmentation, each cropped to its own extent."""
    extents, crops = [], []
    for annotation in annotations:
        extent, crop = MaskSet.tight_crop(torch.from_numpy(decoded_mask(listed.path, annotation, image)))
        extents.append(extent)
        crops.append(crop)
    return MaskSet.from_crops(image.height, image.width, torch.tensor(extents, dtype=torch.int64).reshape(-1, 4), crops)
