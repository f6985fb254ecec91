"""nuScenes' tables and files, written from its schema: made-up scenes, and the real key frame as one more scene."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

TABLES = (
    "attribute", "calibrated_sensor", "category", "ego_pose", "instance", "sample", "sample_annotation",
    "sample_data", "scene", "sensor",
)  # fmt: skip


class Writer:
    """Collects rows; tokens are counted."""

    def __init__(self, root: Path, version: str = "v1.0-mini") -> None:
        self.root, self.version = root, version
        self.tables: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}

    def row(self, table: str, **fields: Any) -> str:
        token = fields.pop("token", f"{table}-{len(self.tables[table])}")
        self.tables[table].append({"token": token, **fields})
        return token

    def named(self, table: str, key: str, name: str, **fields: Any) -> str:
        """Return the token of the row with a name, made if needed."""
        for row in self.tables[table]:
            if row[key] == name:
                return row["token"]
        return self.row(table, **{key: name}, **fields)

    def recording(
        self,
        sample: str,
        channel: str,
        content: bytes,
        global_SE3_ego: torch.Tensor,
        ego_SE3_sensor: torch.Tensor,
        intrinsics: list[list[float]] | None = None,
        size: tuple[int, int] = (0, 0),
    ) -> None:
        suffix = "pcd.bin" if intrinsics is None else "jpg" if content[:2] == b"\xff\xd8" else "png"
        name = f"samples/{channel}/{sample}.{suffix}"
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        modality = "lidar" if intrinsics is None else "camera"
        sensor = self.named("sensor", "channel", channel, modality=modality)
        calibrated = self.row(
            "calibrated_sensor", sensor_token=sensor, **posed(ego_SE3_sensor), camera_intrinsic=intrinsics or []
        )
        self.row(
            "sample_data",
            sample_token=sample,
            ego_pose_token=self.row("ego_pose", **posed(global_SE3_ego)),
            calibrated_sensor_token=calibrated,
            filename=name,
            is_key_frame=True,
            width=size[0],
            height=size[1],
        )

    def annotation(
        self,
        sample: str,
        category: str,
        global_SE3_box: torch.Tensor,
        size: tuple[float, float, float],
        num_lidar_pts: int = 5,
        visibility: str = "4",
        attributes: tuple[str, ...] = (),
    ) -> None:
        length, width, height = size
        instance = self.row("instance", category_token=self.named("category", "name", category))
        self.row(
            "sample_annotation",
            sample_token=sample,
            instance_token=instance,
            attribute_tokens=[self.named("attribute", "name", name) for name in attributes],
            visibility_token=visibility,
            **posed(global_SE3_box),
            size=[width, length, height],
            num_lidar_pts=num_lidar_pts,
            num_radar_pts=0,
        )

    def save(self) -> Path:
        folder = self.root / self.version
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in self.tables.items():
            (folder / f"{name}.json").write_text(json.dumps(rows))
        return self.root


def posed(matrix: torch.Tensor) -> dict[str, list[float]]:
    x, y, z, w = Rotation.from_matrix(matrix[:3, :3].numpy()).as_quat().tolist()
    return {"translation": matrix[:3, 3].tolist(), "rotation": [w, x, y, z]}


def nearest_rotation(matrix: torch.Tensor) -> torch.Tensor:
    """Return a transform with float32 noise removed from its rotation."""
    u, _, v = np.linalg.svd(matrix[:3, :3].numpy())
    clean = matrix.clone()
    clean[:3, :3] = torch.from_numpy(u @ v)
    return clean
