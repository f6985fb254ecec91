"""Objects cut out of labelled sweeps, and pasting them into other labelled sweeps of the same subset.

An object keeps its place in the vehicle frame, so that its density fits its distance, and its height above the ground,
which becomes that of the sweep it is pasted into. The bank is made from the frames that training may see, no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lidar.detection.boxes import Boxes3D
from lidar.detection.sweep import LabelledSweep
from mwsis.core.boxes3d import bev_iou
from mwsis.core.geometry import points_in_boxes3d
from mwsis.core.ground import height_above_ground
from mwsis.core.instances import IGNORE, PointLabels

__all__ = ["BankObject", "ObjectBank"]


@dataclass(frozen=True, eq=False)
class BankObject:
    """An object and where it stood.

    Attributes:
        frame_id: the frame it was cut out of.
        box: (7,) float32, but its z is the height of the centre above the ground.
        label: class.
        xyz: (M, 3) float32, metres, from the centre of the box, axes of the vehicle frame.
        point_feats: (M, 2) float32.
    """

    frame_id: str
    box: Tensor
    label: int
    xyz: Tensor
    point_feats: Tensor


class ObjectBank:
    """The objects of some sweeps.

    Args:
        sweeps: labelled; they are read once.
        num_classes: C.
        min_points: objects with fewer points are left out.

    Attributes:
        objects: by class.

    Source: ground-truth sampling of SECOND (Yan et al., 2018); OpenPCDet asks for 5 points. *Generalised*: objects
    stand on the ground of the sweep they come into.
    """

    def __init__(self, sweeps: Iterable[LabelledSweep], num_classes: int, min_points: int = 5) -> None:
        self.objects: list[list[BankObject]] = [[] for _ in range(num_classes)]
        for sweep in sweeps:
            ground = _ground_plane(sweep.xyz)
            inside = points_in_boxes3d(sweep.xyz, sweep.gt_boxes.boxes3d)
            for index in (inside.sum(0) >= min_points).nonzero()[:, 0].tolist():
                box, label = sweep.gt_boxes.boxes3d[index].clone(), int(sweep.gt_boxes.labels[index])
                # what is known to be something else, such as the road under a wheel, stays where it is
                mine = inside[:, index] & ((sweep.gt.semantic_labels == label) | (sweep.gt.semantic_labels == IGNORE))
                if int(mine.sum()) < min_points:
                    continue
                xyz = sweep.xyz[mine] - box[:3]
                box[2] -= _height_of(ground, box[None, :2])[0]
                self.objects[label].append(BankObject(sweep.frame_id, box, label, xyz, sweep.point_feats[mine]))

    def paste(self, sweep: LabelledSweep, wanted: Sequence[int], generator: torch.Generator) -> LabelledSweep:
        """Return a sweep with objects added until it holds as many as wanted of each class, where there is room.

        An object whose box overlaps another one's in the bird's-eye view is left out; the sweep's own points within a
        pasted box go.

        Args:
            sweep: before augmentation; objects stay where they stood in their own vehicle frame.
            wanted: C numbers of boxes.
            generator: of the draws; one permutation per class that has objects and lacks boxes.

        Returns:
            The sweep; pasted points come last, and their instances are numbered on.
        """
        ground = _ground_plane(sweep.xyz)
        boxes, pasted = sweep.gt_boxes.boxes3d, []
        present = torch.bincount(sweep.gt_boxes.labels, minlength=len(self.objects))
        for label, objects in enumerate(self.objects):
            missing = wanted[label] - int(present[label])
            if missing <= 0 or not objects:
                continue
            for index in torch.randperm(len(objects), generator=generator)[:missing].tolist():
                box = objects[index].box.clone()
                box[2] += _height_of(ground, box[None, :2])[0]
                if not len(boxes) or not bool((bev_iou(box[None], boxes) > 0).any()):
                    boxes = torch.cat([boxes, box[None]])
                    pasted.append((objects[index], box))
        return _joined(sweep, pasted) if pasted else sweep


def _joined(sweep: LabelledSweep, pasted: list[tuple[BankObject, Tensor]]) -> LabelledSweep:
    new = Boxes3D(torch.stack([box for _, box in pasted]), torch.tensor([one.label for one, _ in pasted]))
    sweep = sweep[~points_in_boxes3d(sweep.xyz, new.boxes3d).any(1)]
    counts = torch.tensor([len(one.xyz) for one, _ in pasted])
    first_id = int(sweep.gt.instance_ids.max()) + 1 if len(sweep.xyz) else 0
    instance_ids = torch.repeat_interleave(torch.arange(len(pasted)) + first_id, counts)
    gt = PointLabels(
        torch.cat([sweep.gt.semantic_labels, torch.repeat_interleave(new.labels, counts)]),
        torch.cat([sweep.gt.instance_ids, instance_ids]),
    )
    return replace(
        sweep,
        xyz=torch.cat([sweep.xyz, *(one.xyz + box[:3] for one, box in pasted)]),
        point_feats=torch.cat([sweep.point_feats, *(one.point_feats for one, _ in pasted)]),
        gt=gt,
        gt_boxes=Boxes3D(
            torch.cat([sweep.gt_boxes.boxes3d, new.boxes3d]), torch.cat([sweep.gt_boxes.labels, new.labels])
        ),
    )


def _ground_plane(xyz: Tensor) -> Tensor:
    """Return (3,) float64, the ground's height as a function of (x, y, 1); `height_above_ground` fits one plane."""
    points = xyz.double()
    ground = points[:, 2] - height_above_ground(xyz)
    plane: Tensor = torch.linalg.lstsq(_with_one(points[:, :2]), ground[:, None]).solution[:, 0]
    return plane


def _height_of(plane: Tensor, xy: Tensor) -> Tensor:
    return (_with_one(xy.double()) @ plane).float()


def _with_one(xy: Tensor) -> Tensor:
    return torch.cat([xy, torch.ones_like(xy[:, :1])], 1)
