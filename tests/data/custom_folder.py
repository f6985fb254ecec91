"""Frames as a folder of one's own recordings, in any of its formats, written from docs/guides/own_data.md."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from mwsis.core.frame import Frame
from mwsis.core.geometry import transform_points
from mwsis.core.instances import PointLabels
from mwsis.data.label_files import LabelWriter

FIELDS = ("x", "y", "z", "intensity", "elongation", "ring", "return")
PLY_NAMES = {"<f4": "float", "|u1": "uchar", "<u2": "ushort"}


def write_folder(
    root: Path,
    splits: Mapping[str, Sequence[Frame]],
    class_names: Sequence[str],
    suffix: str = ".bin",
    vehicle_SE3_lidar: torch.Tensor | None = None,
) -> Path:
    """Write frames whose names have no folder, with every kind of truth they have."""
    pose = torch.eye(4, dtype=torch.float64) if vehicle_SE3_lidar is None else vehicle_SE3_lidar
    images, annotations, boxes3d = [], [], []
    for split, frames in splits.items():
        write(root / f"{split}.txt", f"# {split}\n" + "".join(f"{frame.frame_id}\n" for frame in frames))
        for frame in frames:
            path = root / "sweeps" / f"{frame.frame_id}.{suffix.rpartition('.')[2]}"
            write(path, sweep_bytes(table(frame, torch.linalg.inv(pose)), suffix))
            for index, view in enumerate(frame.cameras):
                name = f"{view.name}/{frame.frame_id}.{'jpg' if view.image[:2] == bytes([255, 216]) else 'png'}"
                write(root / "images" / name, view.image)
                size = {"width": view.camera.width, "height": view.camera.height}
                images.append({"id": len(images), "file_name": name, **size})
                annotations += annotations_of(frame, index, images[-1]["id"], len(annotations))
            boxes3d += boxes3d_of(frame, class_names)
            if frame.truth is not None:
                write_point_truth(root / "truth" / "points", frame, class_names)
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(class_names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write(root / "boxes.json", json.dumps(content))
    write(root / "truth" / "boxes3d.json", json.dumps({"boxes3d": boxes3d}))
    write(root / "calibration.json", json.dumps(calibration(next(iter(splits.values()))[0], pose)))
    return root


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def calibration(frame: Frame, pose: torch.Tensor) -> dict:
    cameras = {}
    for view in frame.cameras:
        camera = view.camera
        fx, fy, cx, cy = camera.intrinsics.tolist()
        cameras[view.name] = {
            "width": camera.width,
            "height": camera.height,
            "K": [[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]],
            "distortion": camera.distortion.tolist(),
            "camera_SE3_vehicle": camera.camera_SE3_vehicle.tolist(),
        }
    lidar = {
        "rings": frame.lidar.num_rings,
        "columns": frame.lidar.num_columns,
        "fields": list(FIELDS),
        "vehicle_SE3_lidar": pose.tolist(),
    }
    return {"lidar": lidar, "cameras": cameras}


def table(frame: Frame, lidar_SE3_vehicle: torch.Tensor) -> np.ndarray:
    """Return the points as a structured array."""
    points = frame.points
    rows = np.zeros(len(points), [*((name, "<f4") for name in FIELDS[:5]), ("ring", "<u2"), ("return", "u1")])
    sensor = transform_points(lidar_SE3_vehicle, points.xyz).numpy()
    for column, name in enumerate("xyz"):
        rows[name] = sensor[:, column]
    rows["intensity"] = points.point_feats[:, 0].double().clamp(max=1 - 1e-6).atanh().numpy()
    rows["elongation"] = points.point_feats[:, 1].numpy()
    rows["ring"], rows["return"] = points.ring.numpy(), points.return_index.numpy()
    return rows


def sweep_bytes(rows: np.ndarray, suffix: str) -> bytes:
    """Return a sweep in a format: .bin, .npy (structured), .pcd, .ply, or .ascii.pcd and .ascii.ply."""
    plain = np.stack([rows[name].astype("<f4") for name in FIELDS], 1)
    text = "".join(" ".join(f"{value:.9g}" for value in row) + "\n" for row in plain.tolist()).encode()
    if suffix == ".npy":
        file = io.BytesIO()
        np.save(file, rows)
        return file.getvalue()
    is_text, body = suffix.startswith(".ascii"), rows.tobytes()
    if suffix == ".bin":
        return plain.tobytes()
    if suffix.endswith(".pcd"):
        sizes = [rows.dtype[name].itemsize for name in FIELDS]
        header = (
            "# .PCD v0.7\nVERSION 0.7\n"
            f"FIELDS {' '.join(FIELDS)}\nSIZE {' '.join(map(str, sizes))}\nTYPE F F F F F U U\nCOUNT 1 1 1 1 1 1 1\n"
            f"WIDTH {len(rows)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(rows)}\n"
            f"DATA {'ascii' if is_text else 'binary'}\n"
        )
        return header.encode() + (text if is_text else body)
    if suffix.endswith(".ply"):
        encoding = "ascii" if is_text else "binary_little_endian"
        lines = "".join(f"property {PLY_NAMES[rows.dtype[name].str]} {name}\n" for name in FIELDS)
        header = f"ply\nformat {encoding} 1.0\ncomment made here\nelement vertex {len(rows)}\n{lines}end_header\n"
        return header.encode() + (text if is_text else body)
    raise AssertionError(suffix)


def annotations_of(frame: Frame, camera: int, image_id: int, start: int) -> list[dict]:
    labels, truth = frame.cameras[camera].labels, frame.truth
    found = []
    for index, (x1, y1, x2, y2) in enumerate(labels.boxes.tolist()):
        crowd = bool(labels.ignore[index])
        one = {
            "id": start + index,
            "image_id": image_id,
            "category_id": max(int(labels.labels[index]), 0) + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "iscrowd": int(crowd),
        }
        number = -1 if truth is None else int(truth.box_instance_ids[camera][index])
        if number >= 0:
            one["object_id"] = number
        image = None if truth is None else truth.images[camera]
        if image is not None:
            one["segmentation"] = run_lengths(image.masks.dense(index))
        found.append(one)
    return found


def run_lengths(mask: torch.Tensor) -> dict:
    """Return COCO's uncompressed run lengths, column by column from a run of zeros."""
    flat = mask.T.flatten().to(torch.int8)
    edges = (flat.diff() != 0).nonzero()[:, 0] + 1
    counts = torch.cat([edges.new_zeros(1), edges, edges.new_tensor([len(flat)])]).diff().tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def boxes3d_of(frame: Frame, class_names: Sequence[str]) -> list[dict]:
    if frame.truth is None:
        return []
    truth = frame.truth
    return [
        {
            "frame": frame.frame_id,
            "category": class_names[int(label)],
            "centre": box[:3].tolist(),
            "size": box[3:6].tolist(),
            "yaw": float(box[6]),
            "object_id": int(number),
        }
        for box, label, number in zip(truth.boxes3d, truth.box3d_labels, truth.box3d_ids, strict=True)
    ]


def write_point_truth(folder: Path, frame: Frame, class_names: Sequence[str]) -> None:
    assert frame.truth is not None
    LabelWriter(folder, class_names).add(
        frame.frame_id, PointLabels(frame.truth.semantic_labels, frame.truth.instance_ids)
    )
