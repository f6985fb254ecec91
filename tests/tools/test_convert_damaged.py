"""A Waymo data set with every kind of damage: each segment is named in one sentence, the others are converted."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from waymo_open_dataset import dataset_pb2

from mwsis.data.waymo import v2
from mwsis.data.waymo.record import WaymoRecord
from mwsis.data.waymo.tfrecord import record_spans, write_tfrecord
from mwsis.data.waymo.v1 import encode_record
from tests.data.test_waymo_v1 import laser, matrix, set_type_9
from tests.data.waymo_drive import TIME, make_drive

SECOND = TIME + 100_000
"""Time of the frame that is damaged."""
GOOD = ("first", "last")


def giant(content: bytes) -> bytes:
    """Return an image whose header promises 65,000 by 65,000 pixels."""
    side = 65_000
    if content[1:4] == b"PNG":
        return content[:16] + struct.pack(">II", side, side) + content[24:]
    start = content.index(b"\xff\xc0") + 5
    return content[:start] + struct.pack(">HH", side, side) + content[start + 4 :]


def with_giant_image(record: WaymoRecord) -> WaymoRecord:
    return replace(record, cameras=tuple(replace(camera, image=giant(camera.image)) for camera in record.cameras))


def with_giant_mask(record: WaymoRecord) -> WaymoRecord:
    cameras = tuple(
        replace(camera, panoptic=camera.panoptic and replace(camera.panoptic, png=giant(camera.panoptic.png)))
        for camera in record.cameras
    )
    assert cameras != record.cameras
    return replace(record, cameras=cameras)


def with_wrong_shape(frame: Any) -> None:
    top = laser(frame, dataset_pb2.LaserName.TOP).ri_return1
    top.range_image_compressed = matrix(np.zeros((4, 8, 4), np.float32), (4, 4, 8))


def flip(path: Path) -> None:
    offset, length = list(record_spans(path))[1]
    content = bytearray(path.read_bytes())
    content[offset + length // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def nothing(anything: Any) -> None:
    pass


def same(record: WaymoRecord) -> WaymoRecord:
    return record


V1: dict[str, tuple[Callable[..., WaymoRecord], Callable[..., None], Callable[..., None], str]] = {
    "checksum": (same, nothing, flip, f"frame {SECOND}: payload: its checksum differs"),
    "truncated": (same, nothing, cut, "record 1: "),
    "wrong_shape": (same, with_wrong_shape, nothing, "range_image_compressed: expected (rows, columns, 4)"),
    "unknown_enum": (same, set_type_9, nothing, "type: expected a number from 0 to 4"),
    "image_bomb": (with_giant_image, nothing, nothing, "image: expected a JPEG"),
    "mask_bomb": (with_giant_mask, nothing, nothing, "panoptic label: expected a PNG"),
}


def write_v1(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, (change, edit, damage, _) in {**dict.fromkeys(GOOD, (same, nothing, nothing, "")), **V1}.items():
        records = [replace(make_drive(number), segment=name) for number in range(2)]
        message = dataset_pb2.Frame.FromString(encode_record(change(records[1])))
        edit(message)
        path = folder / f"segment-{name}_with_camera_labels.tfrecord"
        write_tfrecord(path, [encode_record(records[0]), message.SerializeToString()])
        damage(path)


def without_column(table: pa.Table) -> pa.Table:
    return table.drop_columns("[LiDARComponent].range_image_return2.shape")


def of_unknown_type(table: pa.Table) -> pa.Table:
    index = next(number for number, name in enumerate(table.column_names) if name.endswith("].type"))
    return table.set_column(index, table.column_names[index], pa.array([9] * len(table), pa.int8()))


V2: dict[str, tuple[Callable[..., WaymoRecord], str, Callable[[pa.Table], pa.Table] | None, str]] = {
    "missing_column": (same, "lidar", without_column, "no column '[LiDARComponent].range_image_return2.shape'"),
    "unknown_enum": (same, "lidar_box", of_unknown_type, "type: expected"),
    "truncated": (same, "lidar_pose", None, "lidar_pose"),
    "image_bomb": (with_giant_image, "", None, "image: expected a JPEG"),
    "mask_bomb": (with_giant_mask, "", None, "panoptic label: expected a PNG"),
}


def write_v2(folder: Path) -> None:
    for name, (change, component, edit, _) in {**dict.fromkeys(GOOD, (same, "", None, "")), **V2}.items():
        records = [replace(make_drive(number), segment=name) for number in range(2)]
        v2.write_segment(folder, iter([records[0], change(records[1])]))
        path = folder / component / f"{name}.parquet"
        if edit is not None:
            pq.write_table(edit(pq.read_table(path)), path)
        elif component:
            cut(path)


def skipped_in(complaint: str) -> list[str]:
    """Return the lines about skipped segments; the progress bar returns to the start of its line."""
    return [line for line in complaint.replace("\r", "\n").split("\n") if line.startswith("skipped: ")]


def test_a_giant_is_one():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(giant(file.getvalue())))


@pytest.mark.parametrize(("version", "write", "damages"), [("v1", write_v1, V1), ("v2", write_v2, V2)])
def test_the_rest_is_converted(command, tmp_path, version, write, damages):
    root, out = tmp_path / "waymo", tmp_path / "out"
    write(root / "training")
    validation = root / "validation"
    if version == "v1":
        write_tfrecord(validation / "one.tfrecord", [encode_record(make_drive())])
    else:
        v2.write_segment(validation, iter([make_drive()]))
    arguments = (f"source=waymo_{version}", f"root={root}", f"out={out}")
    code, said, complaint = command(*arguments)
    skipped = skipped_in(complaint)
    assert code == 3
    assert len(skipped) == len(damages), "\n".join(skipped)
    for name, (*_, words) in damages.items():
        (sentence,) = (line for line in skipped if f"train/segment-{name}_" in line or f"train/{name}: " in line)
        assert words in sentence
        whole_file = name == "truncated" or (version, name) in (("v2", "missing_column"), ("v2", "unknown_enum"))
        assert str(SECOND) in sentence or whole_file, sentence
    (store,) = out.glob(f"waymo_{version}-*")
    assert sorted(path.stem for path in (store / "train").glob("*.arrow")) == sorted(GOOD)
    assert (store / "val/index.json").exists()
    assert not (store / "train/index.json").exists()
    assert "complete" not in said

    for name in damages:
        for path in root.rglob(f"*{name}*"):
            path.unlink()
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*.arrow")}
    code, said, complaint = command(*arguments)
    assert (code, skipped_in(complaint)) == (0, [])
    assert "(5 frames, complete)" in said
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*.arrow")} == before
