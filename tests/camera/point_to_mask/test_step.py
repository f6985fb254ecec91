import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from camera.point_to_mask.instances_from_semantics import instances_of_components, masks_of_points
from camera.point_to_mask.network import PointNetwork
from camera.point_to_mask.points import ImagePoints, PointedImage
from camera.point_to_mask.samples import PointSamples, collate_points
from camera.point_to_mask.semantic_maps import SemanticMaps
from camera.point_to_mask.step import PointLosses, PointStep, hard_pixel_loss, predict_dense
from camera.transforms import ResizeCropFlip
from mwsis.core.errors import ConfigError, DataError
from mwsis.core.instances import BACKGROUND

OBJECTS = [(40, 30, 18, 0), (76, 44, 20, 0), (60, 84, 14, 1)]  # the first two touch
COLORS = [(220, 40, 40), (150, 90, 20), (30, 60, 240)]


def street(folder, count=2):
    """Images of discs, their maps of classes, and a point near the middle of each disc."""
    (folder / "maps").mkdir()
    row, column = np.mgrid[:112, :128]
    images, masks = [], []
    for number in range(count):
        shift = 6 * number
        discs = [((column - x - shift) ** 2 + (row - y) ** 2 < r * r, label) for x, y, r, label in OBJECTS]
        pixels = np.full((112, 128, 3), 90, dtype=np.uint8)
        semantic = np.zeros((112, 128), dtype=np.uint8)
        for index, (disc, label) in enumerate(discs):
            pixels[disc], semantic[disc] = COLORS[index], label + 1
        Image.fromarray(pixels).save(folder / f"{number}.png")
        Image.fromarray(semantic).save(folder / "maps" / f"{number}.png")
        xy = torch.tensor([[x + shift + 3.0, y - 2.0] for x, y, _, _ in OBJECTS])
        points = ImagePoints(xy, torch.tensor([label for *_, label in OBJECTS]))
        images.append(PointedImage(number, f"{number}.png", 128, 112, points, (1, 2, 3), (1, 1, 2)))
        masks.append([torch.from_numpy(disc) for disc, _ in discs])
    return images, masks


def samples_of(folder, images, widths=(128,), drift=0.0, crop=None, flip=0.5):
    maps = SemanticMaps(folder / "maps", "wsss", 2)
    return PointSamples(images, folder, maps, ResizeCropFlip(widths, flip, crop), 50, drift, seed=0)


def network():
    torch.manual_seed(0)
    return PointNetwork(2, backbone="mobilenetv3_small_050", head_channels=16, affinity_channels=8)


def test_everything_on_an_image_moves_together(tmp_path):
    images, _ = street(tmp_path)
    samples = samples_of(tmp_path, images, widths=(96, 128, 180), crop=(80, 100))
    for position in range(12):
        sample = samples[position % 2, position]
        assert sample.image.shape[1:] == sample.semantic.shape == sample.instances.shape
        height, width = sample.semantic.shape
        column, row = sample.points.xy.floor().long().unbind(1)
        seen = ((column >= 0) & (column < width) & (row >= 0) & (row < height)).nonzero()[:, 0]
        assert len(seen)  # a crop holds a point
        assert torch.equal(sample.instances[row[seen], column[seen]], seen)
        assert torch.equal(sample.semantic[row[seen], column[seen]].long(), sample.points.labels[seen] + 1)
        assert torch.equal(sample.instances == BACKGROUND, sample.semantic == 0)
        again = samples[position % 2, position]
        assert torch.equal(sample.image, again.image)
        assert torch.equal(sample.points.xy, again.points.xy)


def test_instances_are_found_before_the_crop(tmp_path):
    images, _ = street(tmp_path)
    whole = instances_of_components(samples_of(tmp_path, images).maps.of(images[0]), images[0].points)
    sample = samples_of(tmp_path, images, crop=(40, 40), flip=0.0)[0, 5]
    windows = whole.unfold(0, 40, 1).unfold(1, 40, 1)
    assert bool((windows == sample.instances).all(-1).all(-1).any())


def test_drift_is_drawn_anew_at_each_visit(tmp_path):
    images, _ = street(tmp_path)
    samples = samples_of(tmp_path, images, drift=5.0, flip=0.0)
    first, again, later = samples[0, 0], samples[0, 0], samples[0, 2]
    assert torch.equal(first.points.xy, again.points.xy)
    assert not torch.equal(first.points.xy, later.points.xy)
    assert not torch.equal(first.points.xy, images[0].points.xy)


def test_batches_are_padded_with_what_teaches_nothing(tmp_path):
    images, _ = street(tmp_path)
    samples = samples_of(tmp_path, images, widths=(100, 128))
    batch = collate_points([samples[0, 0], samples[1, 1], samples[0, 2], samples[1, 3]])
    assert batch.images.shape[2:] == batch.semantic.shape[1:] == batch.instances.shape[1:] == (128, 128)
    for index, (height, width) in enumerate(batch.sizes.tolist()):
        assert bool((batch.semantic[index, height:] == 255).all())
        assert bool((batch.instances[index, :, width:] == -1).all())


def test_image_of_another_size_or_missing(tmp_path):
    images, _ = street(tmp_path)
    samples = samples_of(tmp_path, images)
    Image.new("RGB", (128, 100)).save(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"says \(112, 128\), the image is \(100, 128\)"):
        samples[0, 0]
    (tmp_path / "0.png").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        samples[0, 0]


def test_hard_pixels_are_the_worst_fifth_of_the_known_ones():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    semantic = torch.randint(0, 3, (2, 16, 20), generator=generator)
    semantic[:, :5] = 255
    dense = functional.interpolate(logits, scale_factor=4.0, mode="bilinear").log_softmax(1)
    losses = sorted(
        (
            -float(dense[i, semantic[i, y, x], y, x])
            for i in range(2)
            for y in range(16)
            for x in range(20)
            if semantic[i, y, x] != 255
        ),
        reverse=True,
    )
    assert len(losses) == 440
    assert float(hard_pixel_loss(logits, semantic, 0.2)) == pytest.approx(sum(losses[:88]) / 88, rel=1e-5)
    assert float(hard_pixel_loss(logits, semantic, 1.0)) == pytest.approx(sum(losses) / 440, rel=1e-5)
    assert float(hard_pixel_loss(logits, torch.full_like(semantic, 255), 0.2)) == 0.0


@pytest.mark.parametrize(("refine", "affinity"), [(False, False), (True, False), (True, True)])
def test_a_step_has_finite_losses_and_reaches_every_part_in_use(tmp_path, refine, affinity):
    images, _ = street(tmp_path)
    samples = samples_of(tmp_path, images)
    step = PointStep(network(), PointLosses(refine=refine, affinity=affinity, radius=3))
    losses = step.losses(collate_points([samples[0, 0], samples[1, 1]]), 0.0)
    assert set(losses) == {"camera/classes", "camera/offsets"} | (
        {"camera/affinity", "camera/refined"} if affinity else set()
    )
    assert all(bool(value.isfinite()) for value in losses.values())
    sum(losses.values()).backward()
    silent = {name for name, value in step.student["camera"].named_parameters() if value.grad is None}
    assert silent == (set() if affinity else {"affinity.weight", "affinity.bias"})


def test_images_without_points_give_losses_of_zero_for_objects(tmp_path):
    street(tmp_path, count=1)
    none = ImagePoints(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    bare = [PointedImage(0, "0.png", 128, 112, none, (), ())]
    losses = PointStep(network(), PointLosses(radius=2)).losses(
        collate_points([samples_of(tmp_path, bare)[0, 0]] * 2), 0
    )
    assert losses["camera/offsets"].item() == 0.0
    assert losses["camera/affinity"].item() == 0.0
    sum(losses.values()).backward()


def test_settings_out_of_range():
    for wrong in ({"hard_share": 0.0}, {"radius": 0}, {"beta": 0.0}, {"offset_weight": -1.0}):
        with pytest.raises(ConfigError, match="PointLosses"):
            PointLosses(**wrong)


def test_two_touching_objects_are_learned_apart(tmp_path):
    images, masks = street(tmp_path, count=1)
    samples = samples_of(tmp_path, images, flip=0.0)
    settings = PointLosses(radius=3, offset_weight=0.3)
    step = PointStep(network(), settings)
    optimiser = torch.optim.AdamW(step.parameters(), lr=4e-3)
    for position in range(60):
        losses = step.losses(collate_points([samples[0, 2 * position], samples[0, 2 * position + 1]]), position / 60)
        optimiser.param_groups[0]["lr"] = 4e-3 * (1 - position / 60)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
    step.eval()
    image = samples_of(tmp_path, images, widths=(128,), flip=0.0)[0, 0].image
    found = masks_of_points(*predict_dense(step.student["camera"], settings, image, (112, 128)), images[0].points)
    for index, mask in enumerate(masks[0]):
        own = found.masks.dense(index)
        if index == 0:
            mask = mask & ~masks[0][1]
        assert float((own & mask).sum() / (own | mask).sum()) > 0.6, index
    assert bool((found.weight > 0.5).all())
