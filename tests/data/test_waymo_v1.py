from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waymo_open_dataset import dataset_pb2

from mwsis.core.errors import DataError
from mwsis.data.waymo.record import IndexedFrame, LidarName, WaymoRecord
from mwsis.data.waymo.tfrecord import read_at, record_spans, write_tfrecord
from mwsis.data.waymo.v1 import encode_record, index_segment, read_record, write_segment
from tests.data.waymo_records import SEGMENT, TIME, difference, make_poor_record, make_record

SHARED = Path(os.environ.get("MWSIS_SHARED", Path(__file__).parents[3] / "shared"))
REAL = SHARED / "data" / "waymo_frame"
ZONES = (np.array([[0.0, 1.0], [2.5, 3.0], [4.0, -5.0]]), np.array([[9.0, 8.0]]))

Change = Callable[[Any], None]


def rich_record() -> WaymoRecord:
    return replace(make_record(0), no_label_zones=ZONES)


def write_changed(path: Path, change: Change) -> Path:
    """Write the rich record's message after a change."""
    frame = dataset_pb2.Frame.FromString(encode_record(rich_record()))
    change(frame)
    write_tfrecord(path, [frame.SerializeToString()])
    return path


def read_only(path: Path, **options: Any) -> WaymoRecord:
    (entry,) = index_segment(path)
    return read_record(path, entry, **options)


def laser(frame: Any, name: int) -> Any:
    return next(part for part in frame.lasers if part.name == name)


def matrix(values: np.ndarray, dims: tuple[int, ...]) -> bytes:
    message = dataset_pb2.MatrixInt32() if values.dtype == np.int32 else dataset_pb2.MatrixFloat()
    message.data.extend(values.ravel().tolist())
    message.shape.dims.extend(dims)
    return zlib.compress(message.SerializeToString())


# Round trip ----------------------------------------------------------------------------------------------------------


def test_records_come_back_bit_for_bit(tmp_path: Path):
    records = [replace(made, no_label_zones=()) for made in (make_record(1), make_poor_record(2))]
    records.insert(0, rich_record())
    write_segment(tmp_path / "a.tfrecord", records)
    index = index_segment(tmp_path / "a.tfrecord")
    assert index == [
        IndexedFrame(SEGMENT, TIME + 100_000 * number, entry.offset, entry.length, labelled, labelled)
        for number, (entry, labelled) in enumerate(zip(index, (True, True, False), strict=True))
    ]
    for record, entry in zip(records, index, strict=True):
        assert difference(read_record(tmp_path / "a.tfrecord", entry), record) == ""


def test_only_the_wanted_lidars_are_decoded(tmp_path: Path):
    write_segment(tmp_path / "a.tfrecord", [rich_record()])
    front, top = read_only(tmp_path / "a.tfrecord", lidars=[LidarName.TOP]).lidars
    assert difference(top, rich_record().lidars[1]) == ""
    assert difference(front, replace(rich_record().lidars[0], returns=(None, None), pixel_pose=None)) == ""


def test_arrays_can_be_written_to(tmp_path: Path):
    write_segment(tmp_path / "a.tfrecord", [rich_record()])
    top = read_only(tmp_path / "a.tfrecord").lidars[1]
    for array in (top.returns[0].values, top.returns[0].projection, top.returns[0].segmentation, top.pixel_pose):
        assert array.flags.writeable
        assert array.flags.aligned


def test_what_is_absent_is_none(tmp_path: Path):
    def strip(frame: Any) -> None:
        for field in ("images", "camera_labels", "projected_lidar_labels", "laser_labels", "no_label_zones"):
            frame.ClearField(field)
        for part in frame.lasers:
            part.Clear()

    record = read_only(write_changed(tmp_path / "a.tfrecord", strip))
    assert record.laser_labels is None
    assert record.no_label_zones == ()
    for camera in record.cameras:
        assert (camera.image, camera.boxes, camera.projected, camera.panoptic, camera.velocity) == (None,) * 5
    for lidar in record.lidars:
        assert (lidar.returns, lidar.pixel_pose) == ((None, None), None)
    assert record.missing() == (
        "images", "2D boxes", "range images", "3D boxes", "LiDAR segmentation", "panoptic labels",
    )  # fmt: skip


def test_labelled_frame_without_objects_is_not_an_unlabelled_one(tmp_path: Path):
    record = read_only(write_changed(tmp_path / "a.tfrecord", lambda frame: frame.ClearField("laser_labels")))
    assert record.laser_labels == ()


def test_boxes_have_the_fields_that_official_readers_assert():
    frame = dataset_pb2.Frame.FromString(encode_record(rich_record()))
    for cameras in (frame.camera_labels, frame.projected_lidar_labels):
        for label in (label for camera in cameras for label in camera.labels):
            assert [field.name for field, _ in label.box.ListFields()] == ["center_x", "center_y", "width", "length"]
    for label in frame.laser_labels:
        assert len(label.box.ListFields()) == 7
    assert not laser(frame, LidarName.TOP).ri_return2.range_image_pose_compressed
    assert [(count.type, count.count) for count in frame.context.stats.laser_object_counts] == [(1, 2)]


def test_image_arrays_are_what_the_messages_say():
    top = laser(dataset_pb2.Frame.FromString(encode_record(rich_record())), LidarName.TOP)
    made = rich_record().lidars[1]
    for part, compressed in ((made.pixel_pose, top.ri_return1.range_image_pose_compressed),
                             (made.returns[1].values, top.ri_return2.range_image_compressed)):  # fmt: skip
        message = dataset_pb2.MatrixFloat.FromString(zlib.decompress(compressed))
        np.testing.assert_array_equal(np.array(message.data, np.float32).reshape(message.shape.dims), part)


# Damage --------------------------------------------------------------------------------------------------------------


def set_values(content: bytes) -> Change:
    return lambda frame: setattr(laser(frame, LidarName.TOP).ri_return1, "range_image_compressed", content)


def set_projection(content: bytes) -> Change:
    return lambda frame: setattr(laser(frame, LidarName.TOP).ri_return2, "camera_projection_compressed", content)


def shift_name(messages: str, value: int) -> Change:
    return lambda frame: setattr(getattr(frame, messages)[0], "name", value)


def set_type_9(frame: Any) -> None:
    """Give a label a class that the messages do not know; they cannot be told to, so by its bytes."""
    label = frame.laser_labels[1]
    label.ClearField("type")
    label.MergeFromString(b"\x18\x09")


FLOATS, INTEGERS = np.zeros((4, 8, 4), np.float32), np.zeros((4, 8, 6), np.int32)
GOOD = matrix(FLOATS, (4, 8, 4))
TOP1 = "lasers TOP ri_return1 range_image_compressed"
TOP2 = "lasers TOP ri_return2 camera_projection_compressed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_values(matrix(FLOATS, (4, 8, 3))), f"{TOP1}: expected as many numbers as .*4, 8, 3.* got 128"),
        (set_values(matrix(FLOATS, ())), f"{TOP1}: expected as many numbers"),
        (set_values(matrix(FLOATS, (4, 4, 8))), rf"{TOP1}: expected \(rows, columns, 4\), got \(4, 4, 8\)"),
        (set_values(matrix(FLOATS, (32, 4))), rf"{TOP1}: expected \(rows, columns, 4\), got \(32, 4\)"),
        (set_projection(matrix(INTEGERS, (8, 4, 6))), rf"{TOP2}: expected rows and columns \(4, 8\).* \(8, 4\)"),
        (set_projection(GOOD), f"{TOP2}: "),
        (set_values(GOOD[:-6]), f"{TOP1}: cannot be decompressed"),
        (set_values(GOOD[:20] + b"????" + GOOD[24:]), f"{TOP1}: cannot be decompressed"),
        (set_values(b"not zlib"), f"{TOP1}: cannot be decompressed"),
        (set_values(zlib.compress(b"\x0a\x7f\x00")), f"{TOP1}: cannot be decompressed .expected 127 bytes, got 1"),
        (set_values(b""), r"lasers TOP ri_return1 camera_projection_compressed: .* None as in"),
        (shift_name("images", 6), "images.name: expected one of 1 FRONT, .* got 6"),
        (shift_name("lasers", 0), "lasers.name: expected one of 1 TOP, .* got 0"),
        (lambda frame: frame.context.laser_calibrations[0].ClearField("name"), "laser_calibrations.name: expected"),
        (set_type_9, "laser_labels walker type: expected a number from 0 to 4"),
        (shift_name("camera_labels", 1), "camera_labels: expected FRONT once, got it twice"),
        (shift_name("images", 2), "images FRONT_LEFT: expected a calibration"),
        (lambda frame: frame.pose.transform.pop(), "pose: expected 16 numbers, got 15"),
        (lambda frame: frame.context.camera_calibrations[1].intrinsic.pop(), "camera_calibrations FRONT intrinsic: "),
        (lambda frame: frame.no_label_zones[0].x.pop(), "no_label_zones: expected as many x as y, got 2 and 3"),
    ],
)
def test_one_sentence_says_which_field_of_which_frame(tmp_path: Path, change: Change, message: str):
    path = write_changed(tmp_path / "a.tfrecord", change)
    with pytest.raises(DataError, match=rf"a\.tfrecord: frame {TIME}: {message}") as caught:
        read_only(path)
    assert "\n" not in str(caught.value)


def test_damaged_payload_is_found_when_it_is_read(tmp_path: Path):
    path = tmp_path / "a.tfrecord"
    write_segment(path, [rich_record(), make_record(1)])
    first, second = index_segment(path)
    content = bytearray(path.read_bytes())
    content[second.offset + second.length // 2] ^= 1
    path.write_bytes(bytes(content))
    assert difference(read_record(path, first), rich_record()) == ""
    with pytest.raises(DataError, match=rf"frame {second.timestamp_micros}: payload: its checksum differs"):
        read_record(path, second)


def test_files_that_hold_no_frames(tmp_path: Path):
    path = tmp_path / "a.tfrecord"
    for payloads, message in (
        ([], "expected at least one frame, got an empty file"),
        ([encode_record(rich_record()), b"\x0b"], "record 1: expected a Frame message, got a field of the unknown"),
        ([encode_record(rich_record())[:-1]], "record 0: expected a Frame message, got a field that reaches beyond"),
        ([b""], "record 0: context.name: expected a value"),
        ([dataset_pb2.Frame(context={"name": "a"}).SerializeToString()], "record 0: timestamp_micros: expected"),
        ([encode_record(rich_record())] * 2, f"frame {TIME}: timestamp_micros: expected different times"),
    ):
        write_tfrecord(path, payloads)
        with pytest.raises(DataError, match=message):
            index_segment(path)


def test_a_file_that_changed_after_it_was_indexed(tmp_path: Path):
    path = tmp_path / "a.tfrecord"
    write_segment(path, [rich_record()])
    (entry,) = index_segment(path)
    write_segment(path, [replace(rich_record(), timestamp_micros=TIME + 1)])
    with pytest.raises(DataError, match=f"frame {TIME}: record: expected segment .*; the file was changed"):
        read_record(path, entry)


# Real frames ---------------------------------------------------------------------------------------------------------


def real(name: str) -> Path:
    path = REAL / f"{name}.tfrecord"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


@pytest.mark.real_data
def test_real_frame_without_range_images():
    path = real("pvps_data_one_frame")
    (entry,) = index_segment(path)
    assert (entry.has_lidar_segmentation, entry.has_panoptic) == (False, True)
    record = read_record(path, entry)
    assert record.missing() == ("range images", "LiDAR segmentation")
    assert (len(record.cameras), len(record.lidars), len(record.laser_labels)) == (5, 5, 75)
    assert sum(len(camera.boxes) for camera in record.cameras) == 66
    assert sum(len(camera.projected) for camera in record.cameras) == 62
    assert all(camera.image[:2] == b"\xff\xd8" and camera.panoptic.divisor == 1000 for camera in record.cameras)
    assert [lidar.name for lidar in record.lidars if lidar.inclinations is not None] == [LidarName.TOP]


@pytest.mark.real_data
def test_real_frame_of_labels_alone():
    record = read_only(real("val_stripped_one_frame"))
    assert record.missing() == ("images", "range images", "LiDAR segmentation", "panoptic labels")
    assert [len(camera.boxes) for camera in record.cameras] == [5, 6, 0, 0, 0]
    assert len(record.laser_labels) == 18


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["pvps_data_one_frame", "val_stripped_one_frame"])
def test_real_frame_written_and_read_again(tmp_path: Path, name: str):
    record = read_only(real(name))
    write_segment(tmp_path / "again.tfrecord", [record])
    assert difference(read_only(tmp_path / "again.tfrecord"), record) == ""


@pytest.mark.real_data
def test_real_file_is_framed_as_we_would(tmp_path: Path):
    path = real("pvps_data_one_frame")
    write_tfrecord(tmp_path / "again.tfrecord", [read_at(path, *span) for span in record_spans(path)])
    assert (tmp_path / "again.tfrecord").read_bytes() == path.read_bytes()
