"""Depth maps on disk: what is written is read, and what is no such folder is refused in one sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mwsis.core.errors import DataError
from mwsis.data.depth_files import DepthFolder, DepthWriter


def facts(folder, **changes):
    content = {"kind": "metric", "scale": 0.01, "offset": 0.0, **changes}
    folder.mkdir(exist_ok=True)
    (folder / "depth.json").write_text(json.dumps({name: one for name, one in content.items() if one is not None}))
    return folder


def png(folder, numbers, frame_id="drive/0", camera="FRONT"):
    path = folder / frame_id / f"{camera}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(numbers)).save(path)
    return path


def test_metres_come_back_to_a_256th(tmp_path) -> None:
    depth = torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) * 99 + 1
    depth[:5] = 0
    writer = DepthWriter(tmp_path, metric=True, made_by="us")
    writer.add("drive/0", "FRONT", depth)
    writer.finish()
    maps = DepthFolder(tmp_path).of("drive/0", "FRONT", 200, 300)
    assert maps.metric
    assert torch.equal(maps.valid, depth > 0)
    assert float((maps.value - depth).abs().max()) <= 0.5 / 256 + 1e-5
    assert not maps.ground.any()


def test_inverse_depth_spans_all_grey_levels_without_steps(tmp_path) -> None:
    """Maps of 8 bits have whole grey levels only, and a threshold on their differences then means equality."""
    depth = torch.linspace(-3, 11, 4000).reshape(40, 100)
    writer = DepthWriter(tmp_path, metric=False, made_by="us")
    writer.add("0", "image", depth)
    writer.add("1", "image", torch.full((4, 10), 5.0))
    writer.finish()
    maps = DepthFolder(tmp_path).of("0", "image", 40, 100)
    assert not maps.metric
    assert bool(maps.valid.all())
    assert (float(maps.value.min()), float(maps.value.max())) == pytest.approx((0, 255))
    torch.testing.assert_close(maps.value, (depth + 3) / 14 * 255, atol=0.003, rtol=0)
    assert len(maps.value.unique()) == 4000
    flat = DepthFolder(tmp_path).of("1", "image", 40, 100)
    assert bool(flat.valid.all())
    assert not flat.value.any()


def test_numbers_mean_what_the_json_says(tmp_path) -> None:
    png(facts(tmp_path, scale=0.5, offset=2.0), np.array([[0, 1], [4, 65535]], dtype=np.uint16))
    maps = DepthFolder(tmp_path).of("drive/0", "FRONT", 2, 2)
    assert maps.value.tolist() == [[0, 2.5], [4, 32769.5]]
    assert maps.valid.tolist() == [[False, True], [True, True]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "metrick"}, "kind: no 'metrick'; did you mean 'metric'"),
        ({"kind": None}, "kind: no 'None'"),
        ({"scale": "1"}, "scale: expected a number, got '1'"),
        ({"scale": -1.0}, "scale: expected more than 0, got -1"),
        ({"offset": None}, "offset: expected a number, got None"),
        ({"complete": False}, "unfinished; run tools/depth.py"),
    ],
)
def test_a_wrong_json_is_refused(tmp_path, changes, said) -> None:
    with pytest.raises(DataError, match=said):
        DepthFolder(facts(tmp_path, **changes))


def test_no_folder_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"none/depth.json: cannot be read \(No such file.*or lidar"):
        DepthFolder(tmp_path / "none")
    (tmp_path / "depth.json").write_text("{")
    with pytest.raises(DataError, match=r"depth.json: no JSON"):
        DepthFolder(tmp_path)
    (tmp_path / "depth.json").write_text("[]")
    with pytest.raises(DataError, match="kind: no 'None'"):
        DepthFolder(tmp_path)


def test_a_wrong_map_is_refused(tmp_path) -> None:
    folder = DepthFolder(facts(tmp_path))
    with pytest.raises(DataError, match=r"drive/0/FRONT.png: no such file; every training image needs"):
        folder.of("drive/0", "FRONT", 4, 6)
    path = png(tmp_path, np.ones((4, 6), dtype=np.uint8))
    with pytest.raises(DataError, match="grey PNG of 16 bits, got mode L"):
        folder.of("drive/0", "FRONT", 4, 6)
    png(tmp_path, np.ones((4, 6), dtype=np.uint16))
    with pytest.raises(DataError, match="map of an image 60 x 80 px, got 6 x 4"):
        folder.of("drive/0", "FRONT", 80, 60)
    folder.of("drive/0", "FRONT", 40, 60)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="cannot be decoded"):
        folder.of("drive/0", "FRONT", 4, 6)
    below = DepthFolder(facts(tmp_path, offset=-1.0))
    png(tmp_path, np.ones((4, 6), dtype=np.uint16))
    with pytest.raises(DataError, match=r"expected metres above 0, got -0\.99"):
        below.of("drive/0", "FRONT", 4, 6)


def test_a_folder_holds_the_maps_of_one_maker(tmp_path) -> None:
    writer = DepthWriter(tmp_path, metric=True, made_by="us")
    assert not writer.has("0", "image")
    writer.add("0", "image", torch.ones(4, 4))
    assert writer.has("0", "image")
    with pytest.raises(DataError, match="unfinished"):
        DepthFolder(tmp_path)
    for other in ({"metric": False, "made_by": "us"}, {"metric": True, "made_by": "them"}):
        with pytest.raises(DataError, match="holds metric maps made by us; give another folder"):
            DepthWriter(tmp_path, **other)
    again = DepthWriter(tmp_path, metric=True, made_by="us")
    assert again.has("0", "image")
    with pytest.raises(DataError, match="frame 1, camera image: expected finite depths"):
        again.add("1", "image", torch.tensor([[1.0, torch.inf]]))
    assert not again.has("1", "image")
    again.finish()
    DepthFolder(tmp_path)
