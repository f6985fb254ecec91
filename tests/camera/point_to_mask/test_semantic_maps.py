from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from camera.point_to_mask.points import ImagePoints, PointedImage
from camera.point_to_mask.semantic_maps import SemanticMaps
from mwsis.core.errors import ConfigError, DataError

IMAGE = PointedImage(1, "a/one.jpg", 6, 4, ImagePoints(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)), (), ())


def write(folder, pixels, mode="L"):
    (folder / "a").mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8), mode="L")
    if mode == "P":
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255] * 85 + [9, 9, 9])
        assert image.mode == "P"
    image.convert("RGB").save(folder / "a" / "one.png") if mode == "RGB" else image.save(folder / "a" / "one.png")
    return folder


@pytest.mark.parametrize("mode", ["L", "P"])
def test_maps_are_read_as_they_are(tmp_path, mode):
    pixels = np.array([[0, 1, 2, 255, 0, 1]] * 4)
    maps = SemanticMaps(write(tmp_path / "maps", pixels, mode), "wsss", 2)
    maps.check([IMAGE])
    assert maps.of(IMAGE).dtype == torch.uint8
    assert maps.of(IMAGE).tolist() == pixels.tolist()


def test_mistakes(tmp_path):
    with pytest.raises(ConfigError, match="semantic_source: expected one of wsss, sam, gt"):
        SemanticMaps(tmp_path, "cam", 2)
    with pytest.raises(DataError, match="no such folder"):
        SemanticMaps(tmp_path / "maps", "wsss", 2)
    maps = SemanticMaps(write(tmp_path, np.full((4, 6), 3)), "wsss", 2)
    with pytest.raises(DataError, match=r"expected 0 to 2 .* got 3"):
        maps.of(IMAGE)
    write(tmp_path, np.zeros((4, 6)), "RGB")
    with pytest.raises(DataError, match=r"8 bits a pixel .* got mode RGB"):
        maps.check([IMAGE])
    write(tmp_path, np.zeros((6, 4)))
    with pytest.raises(DataError, match="6 x 4, got mode L, 4 x 6"):
        maps.check([IMAGE])
    maps.path_of(IMAGE).write_bytes(b"no image")
    with pytest.raises(DataError, match="expected a PNG image"):
        maps.check([IMAGE])
    maps.path_of(IMAGE).unlink()
    with pytest.raises(DataError, match=r"one\.png: no such file; expected the map of classes of a/one\.jpg"):
        maps.check([IMAGE])


@pytest.mark.parametrize(
    "name",
    ["SegmentationClass", "SegmentationClassAug", "segmentation_class", "VOC/SegmentationObject", "gt", "gtFine"],
)
def test_p2seg_defect_01_ground_truth_maps_are_refused_unless_declared(tmp_path, name):
    folder = write(tmp_path / name, np.zeros((4, 6)))
    with pytest.raises(ConfigError, match="is a name of ground truth, got semantic_source=wsss"):
        SemanticMaps(folder, "wsss", 2)
    assert SemanticMaps(folder, "gt", 2).source == "gt"
    (tmp_path / "innocent").symlink_to(folder)
    with pytest.raises(ConfigError, match="is a name of ground truth"):
        SemanticMaps(tmp_path / "innocent", "sam", 2)


def test_maps_that_the_run_makes_are_written_where_they_are_read(tmp_path):
    maps = SemanticMaps(tmp_path / "gt" / "maps", "wsss", 2, made_here=True)
    maps.check_names([IMAGE, replace(IMAGE, file_name="b/one.jpg"), IMAGE])
    semantic = torch.tensor([[0, 1, 2, 255, 0, 1]] * 4, dtype=torch.uint8)
    maps.write(IMAGE, semantic)
    maps.check([IMAGE])
    assert torch.equal(maps.of(IMAGE), semantic)
    for name in ("/b/one.jpg", "b/../../one.jpg", "a/one.JPEG"):
        with pytest.raises(DataError, match="file_name: "):
            maps.check_names([IMAGE, replace(IMAGE, file_name=name)])
