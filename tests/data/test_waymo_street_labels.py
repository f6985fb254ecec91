"""Street segments as Waymo records: labels, names, files."""

from __future__ import annotations

import io
import uuid
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mwsis.core.errors import ConfigError, DataError
from mwsis.data.waymo import v1, v2
from mwsis.data.waymo.classes import CAMERA_CLASSES, LIDAR_CLASSES
from mwsis.data.waymo.record import CameraName, LidarName
from mwsis.data.waymo.street import StreetSegment, StreetSensors, street_records
from tests.data.waymo_records import difference
from tests.data.waymo_street_frames import decoded, lidar_of, near_segment

TINY = {"top": (4, 16), "side": (4, 16), "image_width": 32, "num_slices": 1}


def test_point_labels_and_boxes_count_the_same_points(frame):
    record, stage = frame.record, frame.stage
    top = lidar_of(record, LidarName.TOP)
    pairs = np.concatenate([image.segmentation.reshape(-1, 2) for image in top.returns])
    assert pairs.dtype == np.int32
    assert 0 <= pairs[:, 1].min() <= pairs[:, 1].max() < len(LIDAR_CLASSES)
    counts = np.bincount(pairs[:, 0], minlength=1000)
    box_of = {tuple(np.round(stage.box(row, stage.middle, np.eye(4))[3:6], 9)) for row in range(len(stage.actors))}
    assert {tuple(np.round(label.box[3:6], 9)) for label in record.laser_labels} <= box_of
    assert sum(label.num_top_points for label in record.laser_labels) <= counts[1:].sum()
    assert sum(label.num_top_points for label in record.laser_labels) > 0.7 * counts[1:].sum()
    assert all(label.num_points >= label.num_top_points for label in record.laser_labels)
    missing = top.returns[0].values[..., 0] < 0
    assert not top.returns[0].segmentation[missing].any()
    assert (top.returns[0].projection[missing] == 0).all()


def winding(polygon, points):
    """Turns of a polygon around points, by adding angles."""
    corners = polygon[None] - points[:, None]
    other = np.roll(corners, -1, 1)
    cross = corners[..., 0] * other[..., 1] - corners[..., 1] * other[..., 0]
    return np.arctan2(cross, (corners * other).sum(-1)).sum(1) / (2 * np.pi)


def test_points_in_the_zone_are_marked_and_nothing_in_it_has_a_box(far):
    segment, each = far
    (zone,), world = each.record.no_label_zones, each.record.world_SE3_vehicle
    points, _, rows, columns = decoded(segment, each, LidarName.TOP, 0)
    flags = lidar_of(each.record, LidarName.TOP).returns[0].values[rows, columns, 3]
    around = winding(zone, (points @ world[:3, :3].T + world[:3, 3])[:, :2])
    assert np.array_equal(flags == 1, np.abs(around) > 0.5)
    assert (flags == 1).sum() > 10
    centres = np.array([label.box[:3] for label in each.record.laser_labels]) @ world[:3, :3].T + world[:3, 3]
    assert (np.abs(winding(zone, centres[:, :2])) < 0.5).all()


def test_panoptic_labels_agree_with_the_drawn_boxes(frame):
    kinds = set()
    for camera in frame.record.cameras:
        with Image.open(io.BytesIO(camera.panoptic.png)) as image:
            assert (image.mode, image.size) == ("I;16", (camera.width, camera.height))
            classes, local = np.divmod(np.asarray(image).astype(np.int64), camera.panoptic.divisor)
        kinds |= {CAMERA_CLASSES[number][0] for number in np.unique(classes)}
        assert set(np.unique(local)) - {0} == set(camera.panoptic.local_ids)
        assert len(set(camera.panoptic.global_ids)) == len(camera.panoptic.local_ids)
        masks = []
        for number in camera.panoptic.local_ids:
            rows, columns = np.nonzero(local == number)
            masks.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        for box in camera.boxes:
            x, y, half, high = box.center_x, box.center_y, box.length / 2, box.width / 2
            assert (x - half, y - high, x + half, y + high) in masks
            assert str(uuid.UUID(box.id)) == box.id
    assert sum(len(camera.boxes) for camera in frame.record.cameras) > 10
    assert kinds >= {"ROAD", "BUILDING", "SKY", "VEGETATION", "CAR", "PEDESTRIAN"}


def test_objects_keep_their_names(near, frame):
    other = near.frame(6).record
    names = {label.id: label.type for label in frame.record.laser_labels}
    again = {label.id: label.type for label in other.laser_labels}
    assert all(len(name) == 22 for name in names)
    assert len(set(names) & set(again)) > 0.8 * len(names)
    assert all(again[name] == names[name] for name in set(names) & set(again))
    for camera in frame.record.cameras:
        name = CameraName(camera.name).name
        assert {box.id[22:] for box in camera.projected} <= {f"_{name}"}
        assert {box.id[:22] for box in camera.projected} <= set(names)
    assert other.missing() == ("LiDAR segmentation", "panoptic labels")
    assert frame.record.missing() == ()
    assert other.timestamp_micros - frame.record.timestamp_micros == 100_000


def test_frames_depend_on_their_name_alone(near, frame):
    segment = StreetSegment(0, "train", 0, replace(near.sensors, **TINY))
    first = segment.frame(5).record
    segment.frame(0)
    assert difference(segment.frame(5).record, first) == ""
    assert first.segment == frame.record.segment
    one, two = ([*street_records(0, "val", 1, count, **TINY)] for count in (1, 2))
    assert difference(one[0], two[0]) == ""
    assert one[0].segment != first.segment
    other = next(street_records(1, "val", 1, 1, **TINY))
    assert difference(one[0], replace(other, segment=one[0].segment)) != ""


def test_both_formats_keep_records(frame, tmp_path):
    records = [frame.record, near_segment().frame(6).record]
    v1.write_segment(tmp_path / "segment.tfrecord", records)
    v2.write_segment(tmp_path / "v2", records)
    read = [
        v1.read_record(tmp_path / "segment.tfrecord", each) for each in v1.index_segment(tmp_path / "segment.tfrecord")
    ]
    again = [v2.read_record(tmp_path / "v2", each) for each in v2.index_segment(tmp_path / "v2", frame.record.segment)]
    for record, first, second in zip(records, read, again, strict=True):
        assert difference(ordered(record), ordered(first)) == ""
        assert difference(ordered(replace(record, no_label_zones=None)), ordered(second)) == ""


def ordered(record):
    """Lists by number: neither format keeps the order of sensors."""
    cameras = sorted(record.cameras, key=lambda camera: camera.name)
    lidars = sorted(record.lidars, key=lambda lidar: lidar.name)
    return replace(record, cameras=tuple(cameras), lidars=tuple(lidars))


def test_wrong_requests_are_named():
    with pytest.raises(DataError, match="no split 'trian'; did you mean 'train'"):
        street_records(0, "trian", 0, 1)
    with pytest.raises(ConfigError, match="num_frames is 201, expected 0 to 200"):
        street_records(0, "train", 0, 201)
    with pytest.raises(ConfigError, match="top columns is 2, expected at least 16"):
        StreetSensors(top=(64, 2))
