import json

import pytest
import torch

from camera.point_to_mask.points import drifted, read_points
from mwsis.core.errors import ConfigError, DataError


def write(folder, annotations, **changes):
    content = {
        "images": [
            {"id": 7, "file_name": "a/one.jpg", "width": 40, "height": 30},
            {"id": 8, "file_name": "two.jpg", "width": 20, "height": 10},
        ],
        "categories": [{"id": 3, "name": "car"}, {"id": 5, "name": "person"}, {"id": 9, "name": "bus"}],
        "annotations": annotations,
    }
    path = folder / "points.json"
    path.write_text(json.dumps(content | changes))
    return path


def row(**changes):
    return {"id": 1, "image_id": 7, "category_id": 3, "point": [4.5, 6]} | changes


def test_points_of_a_file(tmp_path):
    rows = [row(), row(id=2, category_id=9, point=[0, 0]), row(id=3, category_id=5), row(id=4, iscrowd=1, point=None)]
    names, images = read_points(write(tmp_path, rows), [{"Vehicle": ["bus", "car"]}], "annotated")
    assert names == ("Vehicle",)
    assert [(image.id, image.file_name, image.width, image.height) for image in images] == [
        (7, "a/one.jpg", 40, 30),
        (8, "two.jpg", 20, 10),
    ]
    assert images[0].points.xy.tolist() == [[4.5, 6.0], [0.0, 0.0]]
    assert images[0].points.labels.tolist() == [0, 0]
    assert images[0].ids == (1, 2)
    assert images[0].categories == (3, 9)
    assert len(images[1].points) == 0


def test_every_category_in_the_order_of_ids(tmp_path):
    names, images = read_points(write(tmp_path, [row(category_id=9)]), None, "annotated")
    assert names == ("car", "person", "bus")
    assert images[0].points.labels.tolist() == [2]


def test_boxes_are_not_looked_at_unless_allowed(tmp_path):
    rows = [row(point=None, bbox=[30, 10, 20, 10]), row(id=2), row(id=3, point=None, bbox=[50, 10, 20, 10])]
    path = write(tmp_path, rows)
    with pytest.raises(DataError, match=r"annotations\[0\]: point: expected \[x, y\], got none; .* points=box_centre"):
        read_points(path, None, "annotated")
    _, images = read_points(path, None, "box_centre")
    assert images[0].points.xy.tolist() == [[35.0, 15.0], [4.5, 6.0]]  # of the part inside; none for what is outside
    poisoned = write(tmp_path, [row(bbox="nonsense", segmentation=[[0, 1]])])
    assert read_points(poisoned, None, "annotated")[1][0].points.xy.tolist() == [[4.5, 6.0]]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(point=[40, 3])], "inside the image of 40 x 30"),
        ([row(point=[-1, 3])], "inside the image"),
        ([row(point=[1])], "expected 2 numbers"),
        ([row(point=[1, "a"])], "expected 2 numbers"),
        ([row(point=[1, float("nan")])], "expected 2 numbers"),
        ([row(image_id=9)], "no image 9"),
        (["x"], "annotations: expected a list of entries"),
    ],
)
def test_mistakes_in_annotations(tmp_path, rows, said):
    with pytest.raises(DataError, match=said):
        read_points(write(tmp_path, rows), None, "annotated")


def test_other_mistakes(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_points(tmp_path / "none.json", None, "annotated")
    path = write(tmp_path, [])
    with pytest.raises(DataError, match="no 'cars'; did you mean 'car'"):
        read_points(path, ["cars"], "annotated")
    with pytest.raises(ConfigError, match="each class and each category once"):
        read_points(path, ["car", {"Vehicle": ["car"]}], "annotated")
    with pytest.raises(ConfigError, match="points: expected one of annotated, box_centre"):
        read_points(path, None, "centre")
    with pytest.raises(DataError, match="width and height"):
        read_points(write(tmp_path, [], images=[{"id": 1, "file_name": "a.jpg"}]), None, "annotated")
    path.write_text("{")
    with pytest.raises(DataError, match="no JSON"):
        read_points(path, None, "annotated")


def test_drift_is_gaussian_seeded_and_stays_inside():
    xy = torch.full((20000, 2), 500.0)
    moved = drifted(xy, 10.0, (1000, 1000), torch.Generator().manual_seed(0)) - xy
    assert moved.mean(0).abs().max() < 0.3
    assert moved.std(0).tolist() == pytest.approx([10.0, 10.0], rel=0.02)
    again = drifted(xy, 10.0, (1000, 1000), torch.Generator().manual_seed(0)) - xy
    assert torch.equal(moved, again)
    edge = drifted(torch.tensor([[0.0, 0.0], [39.0, 29.0]]).repeat(500, 1), 15.0, (30, 40), torch.Generator())
    assert bool((edge >= 0).all())
    assert bool((edge.floor() <= torch.tensor([39.0, 29.0])).all())
    assert torch.equal(drifted(xy, 0.0, (1000, 1000), torch.Generator()), xy)
