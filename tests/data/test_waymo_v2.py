from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from mwsis.core.errors import DataError
from mwsis.data.waymo.record import LidarName, WaymoRecord
from mwsis.data.waymo.v2 import index_segment, list_segments, read_record, write_segment
from tests.data.waymo_records import SEGMENT, TIME, bare, difference, make_poor_record, make_record

SHARED = Path(os.environ.get("MWSIS_SHARED", Path(__file__).parents[3] / "shared"))
REAL = SHARED / "data" / "waymo_v2"
FORMAT = SHARED / "specs" / "waymo_v2_schema.json"

Change = Callable[[pa.Table], pa.Table]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_segment(tmp_path / "training", [make_record(0), make_poor_record(1), make_record(2)])
    return tmp_path / "training"


def table_file(root: Path, component: str) -> Path:
    return root / component / f"{SEGMENT}.parquet"


def rewrite(root: Path, component: str, change: Change, **options: Any) -> None:
    path = table_file(root, component)
    pq.write_table(change(pq.read_table(path)), path, **options)


def with_column(name: str, change: Callable[[Any], Any]) -> Change:
    """Return what replaces a column, found by the end of its name."""

    def changed(table: pa.Table) -> pa.Table:
        index = next(i for i, column in enumerate(table.column_names) if column.endswith(name))
        return table.set_column(index, table.column_names[index], change(table.column(index).combine_chunks()))

    return changed


def read_all(root: Path) -> list[WaymoRecord]:
    return [read_record(root, entry) for entry in index_segment(root, SEGMENT)]


def assert_unchanged(root: Path) -> None:
    for record, expected in zip(read_all(root), (make_record(0), make_poor_record(1), make_record(2)), strict=True):
        assert difference(record, expected) == ""


def test_records_come_back_bit_for_bit(root: Path) -> None:
    assert_unchanged(root)
    assert read_all(root)[0].missing() == ()
    assert read_all(root)[1].missing() == ("LiDAR segmentation", "panoptic labels")


def test_the_comparison_sees_one_bit() -> None:
    values = make_record().lidars[0].returns[0]
    assert values is not None
    changed = values.values.copy()
    changed[1, 1, 1] = np.nextafter(changed[1, 1, 1], np.float32(9))
    assert difference(values, replace(values, values=changed))


def test_the_index_comes_from_keys(root: Path) -> None:
    entries = index_segment(root, SEGMENT)
    assert list_segments(root) == [SEGMENT]
    assert [entry.timestamp_micros for entry in entries] == [TIME, TIME + 100_000, TIME + 200_000]
    assert [entry.has_lidar_segmentation for entry in entries] == [True, False, True]
    assert [entry.has_panoptic for entry in entries] == [True, False, True]
    table_file(root, "vehicle_pose").unlink()
    assert index_segment(root, SEGMENT) == entries
    with pytest.raises(DataError, match=r"vehicle_pose.*expected a row for frame"):
        read_record(root, entries[0])


def test_only_the_wanted_lidars_are_decoded(root: Path) -> None:
    record = read_record(root, index_segment(root, SEGMENT)[0], lidars=[LidarName.FRONT])
    front, top = record.lidars
    assert difference(front, make_record(0).lidars[0]) == ""
    assert top.name == LidarName.TOP
    assert top.returns == (None, None)
    assert top.pixel_pose is None


def test_a_frame_is_a_row_group_of_its_own(root: Path) -> None:
    for component in ("lidar", "lidar_camera_projection", "camera_image"):
        groups = pq.ParquetFile(table_file(root, component)).metadata
        assert groups.num_row_groups == 3
        for number in range(3):
            times = groups.row_group(number).column(1).statistics
            assert times.min == times.max == TIME + 100_000 * number


def test_range_images_are_not_copied(root: Path) -> None:
    first = read_all(root)[0].lidars[0].returns[0]
    assert first is not None
    assert not first.values.flags.owndata
    assert not first.values.flags.writeable


@pytest.mark.parametrize("by", ["key.laser_name", "key.frame_timestamp_micros"])
@pytest.mark.parametrize("direction", ["ascending", "descending"])
def test_rows_may_come_in_any_order_in_one_row_group(
    root: Path, by: str, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mwsis.data.waymo.v2_table.NEAR_ROWS", 2)
    for component in ("lidar", "lidar_camera_projection", "lidar_pose"):
        rewrite(root, component, lambda table: table.sort_by([(by, direction)]))
        assert pq.ParquetFile(table_file(root, component)).num_row_groups == 1
    assert_unchanged(root)
    last, first = index_segment(root, SEGMENT)[::-2]
    assert difference(read_record(root, last), make_record(2)) == ""
    assert difference(read_record(root, first), make_record(0)) == ""


@pytest.mark.parametrize("size", [1, 3])
def test_rows_of_a_frame_may_lie_in_several_row_groups(root: Path, size: int) -> None:
    for component in ("lidar_box", "camera_box", "lidar", "camera_image"):
        rewrite(root, component, lambda table: table, row_group_size=size, compression="brotli")
    assert_unchanged(root)


def test_enums_may_be_names_and_floats_narrow(root: Path) -> None:
    cameras, kinds = ["UNKNOWN", "FRONT", "", "", "SIDE_LEFT"], ["", "TYPE_VEHICLE", "TYPE_PEDESTRIAN"]
    rewrite(root, "camera_image", with_column("camera_name", lambda c: pa.array(cameras).take(c)))
    rewrite(root, "camera_box", with_column("].type", lambda c: pa.array(kinds).take(c)))
    rewrite(root, "lidar", with_column("laser_name", lambda c: pa.array(["", "TOP", "FRONT"]).take(c)))
    rewrite(root, "lidar", with_column("return1.values", lambda c: c.cast(pa.list_(pa.float64()))))
    assert_unchanged(root)
    rewrite(root, "vehicle_pose", with_column("transform", lambda c: c.cast(pa.list_(pa.float32(), 16))))
    pose = read_all(root)[0].world_SE3_vehicle
    assert pose.dtype == np.float64
    assert np.array_equal(pose, make_record(0).world_SE3_vehicle.astype(np.float32))


@pytest.mark.parametrize(
    ("component", "change", "message"),
    [
        ("lidar", lambda t: t.drop_columns("[LiDARComponent].range_image_return2.shape"), "no column .*return2.shape"),
        ("lidar", with_column("micros", lambda c: c.cast(pa.float64())), "micros: expected int64, got double"),
        ("lidar", with_column("return1.values", lambda c: pa.nulls(len(c), pa.string())), "values: expected list"),
        (
            "lidar",
            with_column("return1.shape", lambda c: pc.take(c, pa.array([2] * len(c)))),
            "return1.shape: expected",
        ),
        ("lidar", lambda t: pa.concat_tables([t, t]), "laser_name: expected one row per frame and sensor"),
        ("vehicle_pose", lambda t: pa.concat_tables([t, t]), "expected one row for frame"),
        ("camera_box", with_column("].type", lambda c: pa.array(["WALL"] * len(c))), "type: expected .*got 'WALL'"),
        ("camera_box", with_column("].type", lambda c: pa.array([9] * len(c))), "type: expected .*4 CYCLIST.*got 9"),
        ("camera_box", with_column("size.x", lambda c: pa.nulls(len(c), pa.float64())), "size.x: .* got null"),
        (
            "lidar_camera_projection",
            with_column(
                "return1.values", lambda c: pa.array([[v + 0.5 for v in row] for row in c.to_pylist()], c.type)
            ),
            "expected whole numbers in projections",
        ),
    ],
)
def test_tables_of_another_kind_are_refused(root: Path, component: str, change: Change, message: str) -> None:
    rewrite(root, component, change)
    with pytest.raises(DataError, match=rf"{component}/{SEGMENT}\.parquet: .*{message}"):
        read_all(root)


def test_files_that_are_not_of_this_segment_are_refused(root: Path) -> None:
    table_file(root, "vehicle_pose").rename(root / "vehicle_pose" / "other.parquet")
    with pytest.raises(DataError, match="segment_context_name: expected 'other', the name of the file"):
        index_segment(root, "other")
    table_file(root, "camera_image").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"camera_image/.*expected a Parquet file"):
        index_segment(root, SEGMENT)
    with pytest.raises(DataError, match=r"nothing\.parquet: no such file"):
        index_segment(root, "nothing")
    with pytest.raises(DataError, match="no folder 'vehicle_pose'"):
        list_segments(root / "lidar")


def test_a_damaged_row_group_is_refused(root: Path) -> None:
    path = table_file(root, "lidar")
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"lidar/.*cannot be decoded"):
        read_all(root)


def test_interrupted_writing_leaves_the_old_tables(root: Path) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def breaks() -> Iterator[WaymoRecord]:
        yield make_record(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_segment(root, breaks())
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_a_segment_written_again_loses_its_old_tables(root: Path) -> None:
    read_all(root)
    record = make_record(7)
    cameras = tuple(bare(camera) for camera in record.cameras)
    poor = replace(record, cameras=cameras, laser_labels=None, time_of_day="", location="", weather="")
    write_segment(root, [poor])
    written = {path.parent.name for path in root.rglob("*.parquet")}
    lidar = {"lidar", "lidar_camera_projection", "lidar_pose", "lidar_segmentation"}
    assert written == {"vehicle_pose", "camera_calibration", "lidar_calibration", *lidar}
    (again,) = read_all(root)
    assert difference(again, poor) == ""
    assert again.missing() == ("images", "2D boxes", "3D boxes", "panoptic labels")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (replace(make_record(1), segment="other"), "expected a frame of this segment"),
        (make_record(0), "expected a time of its own"),
        (replace(make_record(1), lidars=()), "expected the calibrations of the segment's first frame"),
        (replace(make_record(1), cameras=tuple(replace(c, width=7) for c in make_record(1).cameras)), "calibrations"),
    ],
)
def test_frames_that_disagree_are_refused(tmp_path: Path, second: WaymoRecord, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_segment(tmp_path, [make_record(0), second])
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.skipif(not FORMAT.is_file(), reason="the facts about the format are not beside this checkout")
def test_tables_have_the_format_s_columns(root: Path) -> None:
    expected = {component: entry["columns"] for component, entry in json.loads(FORMAT.read_text()).items()}
    for component, columns in expected.items():
        schema = pq.read_schema(table_file(root, component))
        assert {field.name: str(field.type) for field in schema} == columns
        assert schema.names == list(columns)


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="the real Waymo v2 tables are not beside this checkout")
def test_real_tables_are_indexed_and_say_what_is_missing(tmp_path: Path) -> None:
    for path in REAL.glob("*.parquet"):
        component, _, name = path.name.partition("__")
        (tmp_path / component).mkdir()
        (tmp_path / component / name).symlink_to(path)
    (segment,) = list_segments(tmp_path)
    entries = index_segment(tmp_path, segment)
    assert len(entries) == 199
    assert not any(entry.has_panoptic or entry.has_lidar_segmentation for entry in entries)
    steps = np.diff([entry.timestamp_micros for entry in entries])
    assert (abs(steps - 100_000) < 5_000).all()
    records = [read_record(tmp_path, entry) for entry in entries]
    turns = np.stack([record.world_SE3_vehicle[:3, :3] for record in records])
    assert np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(3), atol=1e-5)
    places = np.stack([record.world_SE3_vehicle[:3, 3] for record in records])
    speeds = np.linalg.norm(np.diff(places, axis=0), axis=1) / (steps * 1e-6)
    assert speeds.max() < 40
    everything = replace(make_record(0), lidars=(), cameras=(), laser_labels=None).missing()
    assert len(everything) == 7
    assert records[0].missing() == everything
