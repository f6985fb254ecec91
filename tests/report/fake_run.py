"""A made-up run: one street-like image and sweep per frame, and numbers that look like a short training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mwsis.core.frame import ImageTruth
from mwsis.core.instances import BACKGROUND, IGNORE, Boxes2D, Detections, MaskSet, PointInstances, PointLabels
from mwsis.report.content import CameraRow, FrameGallery, Report
from mwsis.report.pictures import align_instances, draw_birds_eye, draw_image

CLASS_NAMES = ("Vehicle", "Pedestrian", "Cyclist")
POINT_CLOUD_RANGE = (-10.0, -30.0, -2.0, 50.0, 30.0, 4.0)


@dataclass(frozen=True)
class FakeFrame:
    image: Tensor
    truth: ImageTruth
    detections: Detections
    pixel_uv: Tensor
    xyz: Tensor
    gt_points: PointLabels
    pseudo: PointLabels
    found: PointInstances
    boxes3d: Tensor


def fake_frame(seed: int = 0, width: int = 384, height: int = 240) -> FakeFrame:
    draw = np.random.default_rng(seed)
    sky = np.linspace(200, 90, height)[:, None, None] + draw.normal(0, 6, (height, width, 3))
    image = np.clip(sky, 0, 255).astype(np.uint8)
    id_map = np.full((height, width), -1)
    rows, cols = np.mgrid[:height, :width]
    labels = [0, 0, 1, 2, 0]
    for index, label in enumerate(labels):
        size = (26, 44) if label == 0 else (30, 11)
        centre = (height * 0.55 + draw.uniform(-12, 30), width * (index + 0.6) / len(labels) + draw.uniform(-8, 8))
        inside = ((rows - centre[0]) / size[0]) ** 4 + ((cols - centre[1]) / size[1]) ** 4 < 1
        id_map[inside] = index
        image[inside] = draw.integers(40, 220, 3)
    masks = MaskSet.from_id_map(torch.from_numpy(id_map), torch.arange(len(labels)))
    boxes = Boxes2D(masks.crop_boxes.float(), torch.tensor(labels), torch.tensor([False] * 4 + [True]))
    truth = ImageTruth(boxes, masks, torch.arange(len(labels)))
    scores = torch.tensor([0.93, 0.88, 0.71, 0.45, 0.12])
    detections = Detections(boxes.boxes + 1.5, boxes.labels, scores, masks)
    uv = torch.from_numpy(draw.uniform([0, height * 0.3], [width, height], (2500, 2))).float()
    return FakeFrame(
        torch.from_numpy(image).permute(2, 0, 1).contiguous(), truth, detections, uv, *_fake_sweep(draw, labels)
    )


def _fake_sweep(
    draw: np.random.Generator, labels: list[int]
) -> tuple[Tensor, PointLabels, PointLabels, PointInstances, Tensor]:
    angle, radius = draw.uniform(-np.pi, np.pi, 20000), 4 + 55 * draw.uniform(0, 1, 20000) ** 1.7
    ground = np.stack([radius * np.cos(angle), radius * np.sin(angle), draw.normal(0, 0.05, 20000)], 1)
    parts, ids, boxes = [ground], [np.full(20000, -1)], []
    for index, label in enumerate(labels):
        length, width = ((4.5, 1.9), (0.7, 0.7), (1.8, 0.7))[label]
        x, y, yaw = draw.uniform(6, 42), (index - 2) * 9.0 + draw.uniform(-2, 2), draw.uniform(-3, 3)
        across = draw.uniform(-0.5, 0.5, (200 + 300 * (label == 0), 2)) * [length, width]
        cos, sin = np.cos(yaw), np.sin(yaw)
        turned = np.stack([x + across[:, 0] * cos - across[:, 1] * sin, y + across[:, 0] * sin + across[:, 1] * cos], 1)
        parts.append(np.concatenate([turned, draw.uniform(0, 1.6, (len(turned), 1))], 1))
        ids.append(np.full(len(turned), index))
        boxes.append([x, y, 0.8, length, width, 1.6, yaw])
    xyz, own = torch.from_numpy(np.concatenate(parts)).float(), torch.from_numpy(np.concatenate(ids))
    classes = torch.tensor([*labels, BACKGROUND])
    gt_points = PointLabels(classes[own], own)
    lost = torch.from_numpy(draw.uniform(0, 1, len(own)) < 0.1) & (own >= 0)
    pseudo = PointLabels(torch.where(lost, IGNORE, classes[own]), torch.where(lost | (own < 0), -1, own + 3))
    kept = own.clamp(-1, 3)
    kept[own == 4] = -1
    found = PointInstances(classes[torch.where(kept < 0, -1, kept)], kept, classes[:4], torch.full((4,), 0.8))
    return xyz, gt_points, pseudo, found, torch.tensor(boxes)


def fake_gallery(seed: int, mask_truth: bool = True) -> FrameGallery:
    frame = fake_frame(seed)
    labels = frame.truth.labels
    point_classes = torch.from_numpy(np.random.default_rng(seed).choice([IGNORE, BACKGROUND, 0, 1, 2], 2500))
    front = CameraRow(
        "FRONT",
        draw_image(frame.image, class_names=CLASS_NAMES, boxes=labels),
        draw_image(frame.image, class_names=CLASS_NAMES, detections=frame.detections),
        draw_image(frame.image, class_names=CLASS_NAMES, truth=frame.truth) if mask_truth else None,
        draw_image(
            frame.image, class_names=CLASS_NAMES, boxes=labels, pixel_uv=frame.pixel_uv, point_values=point_classes
        ),
    )
    gt_ids = frame.gt_points.instance_ids
    views = [
        draw_birds_eye(frame.xyz, labels, POINT_CLOUD_RANGE, class_names=CLASS_NAMES, boxes3d=boxes3d)
        for labels, boxes3d in (
            (frame.gt_points, frame.boxes3d),
            (PointLabels(frame.pseudo.semantic_labels, align_instances(gt_ids, frame.pseudo.instance_ids)), None),
            (frame.found, None),
        )
    ]
    return FrameGallery(f"segment-{seed}/000{seed}", (front,), *views)


def fake_report(num_frames: int = 1, mask_truth: bool = True) -> Report:
    teacher = {
        "mask_ap": 0.3127, "mask_ap50": 0.5512, "mask_ap75": 0.3019,
        "matched_mask_iou": 0.7243, "matched_box_iou": 0.6128,
        "num_images": 24, "num_objects": 1148, "num_matched": 903,
        "mask_ap/Vehicle": 0.4821, "mask_ap/Pedestrian": 0.2411, "mask_ap/Cyclist": float("nan"),
    }  # fmt: skip
    student = {key: value * 0.94 if isinstance(value, float) else value for key, value in teacher.items()}
    lidar = {
        "instance_ap": 0.4146, "instance_ap50": 0.5823, "instance_ap25": 0.7014, "miou": 0.6621,
        "iou/Vehicle": 0.8113, "iou/Pedestrian": 0.6042, "iou/Cyclist": 0.5708,
        "instance_ap/Vehicle": 0.5931, "instance_ap/Pedestrian": 0.3844, "instance_ap/Cyclist": 0.2663,
    }  # fmt: skip
    quality = {"frustum": (0.61, 0.44, 0.32), "clustering": (0.74, 0.67, 0.49), "spg": (0.86, 0.70, 0.67)}
    rows = [
        {
            "method": method, "class": name, "objects": 400 // (index + 1), "point_iou": value,
            "precision": min(1.0, value + 0.08), "recall": min(1.0, value + 0.14), "pooled_iou": value - 0.03,
        }
        for method, values in quality.items()
        for index, (name, value) in enumerate(zip(CLASS_NAMES, values, strict=True))
    ]  # fmt: skip
    return Report(
        title="MWSIS on the embedded street world",
        metrics={
            "camera": {"teacher": teacher, "student": student} if mask_truth else {"teacher": None, "student": None},
            "lidar": {"teacher": lidar, "student": {key: value * 0.96 for key, value in lidar.items()}},
            "labels": {"split": "train", "rows": rows, "trained_on": "pseudo_ labels: spatial labels (SPG)"},
            "data": {"name": "street", "fingerprint": "5f1c0ffee2aa", "train_frames": 48, "val_frames": 8},
            "method": "mwsis", "labels_used": "2D boxes only", "seed": 7, "steps": 1200, "wall_s": 287.4,
        },
        galleries=[fake_gallery(seed, mask_truth) for seed in range(num_frames)],
        losses=fake_losses(),
        facts={"torch": "2.8.0", "Git commit": "db8b5d3a1f20", "licence": "Generated images; no third party's data."},
        config_yaml="seed: 7\ndata:\n  name: street\nmethod:\n  name: mwsis\n  ipg: true\n",
    )  # fmt: skip


def fake_losses(num_steps: int = 400) -> list[dict[str, object]]:
    draw = np.random.default_rng(0)
    names = (
        "camera/cls",
        "camera/box",
        "camera/projection",
        "camera/pairwise",
        "camera/ipg",
        "lidar/cls",
        "lidar/vote",
    )
    rows: list[dict[str, object]] = []
    for step in range(0, num_steps, 2):
        for index, name in enumerate(names):
            if name == "camera/ipg" and step < num_steps // 2:
                continue
            value = (0.4 + index * 0.3) * np.exp(-step / 120) + 0.1 + abs(draw.normal(0, 0.06))
            rows.append({"step": step, "name": name, "value": float(value)})
    return rows
