"""The detector as a whole: shapes, what is trained, empty sweeps, learning one sweep by heart."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidar.detection.boxes import Boxes3D
from lidar.detection.detector import DECODER, bird_eye_shape, build_center_point, strongest_of_cells
from lidar.detection.neck import BirdEyeNeck
from lidar.fsd_unet import fsd_unet_parts
from lidar.res8x_unet import res8x_unet_parts
from lidar.unet_v2 import UNetV2, unet_v2_parts
from lidar.voxelize import VoxelGrid
from mwsis.core.batch import PointBatch
from mwsis.core.errors import ConfigError
from mwsis.evaluation.detection3d import DetectionEvaluator3D, Detections3D, Objects3D
from tests.lidar.detection.scenes import sweep_of

RANGE = (-9.6, -8.0, -2.0, 9.6, 8.0, 4.0)
SMALL = {"neck_layers": (1, 1), "neck_channels": (32, 32), "neck_up_channels": (16, 16), "head_channels": 16}


def make_detector(parts=unet_v2_parts, upsample=2, decoder=False):
    torch.manual_seed(0)
    return build_center_point(parts, 3, (0.2, 0.2, 0.2), RANGE, upsample=upsample, decoder=decoder, **SMALL)


def scene():
    boxes = Boxes3D(
        torch.tensor(
            [
                [4.0, 3.0, 0.8, 4.2, 1.9, 1.6, 0.6],
                [-4.5, -3.0, 0.8, 4.0, 1.8, 1.5, -2.4],
                [-5.0, 4.0, 0.9, 0.7, 0.7, 1.8, 1.0],
                [2.0, -5.0, 0.85, 1.8, 0.7, 1.7, 3.0],
            ]
        ),
        torch.tensor([0, 0, 1, 2]),
    )
    return sweep_of(boxes, torch.Generator().manual_seed(0), points_each=80, reach=7.5)


def batch(*sweeps):
    counts = torch.tensor([0, *(len(xyz) for xyz, _ in sweeps)]).cumsum(0)
    unknown = torch.full((int(counts[-1]),), -1)
    xyz, feats = (torch.cat(columns) for columns in zip(*sweeps, strict=True))
    return PointBatch(xyz, feats, counts, unknown, unknown)


@settings(max_examples=12, deadline=None)
@given(st.integers(25, 60), st.integers(8, 60), st.integers(8, 60))
def test_the_bird_eye_shape_is_the_encoders(z, y, x):
    network = UNetV2(5, (z, y, x)).eval()
    coords = torch.tensor([[0, 0, 0, 0], [0, z - 1, y - 1, x - 1]], dtype=torch.int32)
    height, rows, columns = bird_eye_shape((z, y, x))
    assert network.encode(torch.rand(2, 5), coords, 1).shape == (1, 128 * height, rows, columns)


def test_a_grid_too_low_for_the_encoder_is_refused():
    with pytest.raises(ConfigError, match="needs a grid of 24 voxels along z, got 23"):
        bird_eye_shape((24, 100, 100))
    assert bird_eye_shape((25, 100, 100)) == (1, 13, 13)


@pytest.mark.parametrize("parts", [unet_v2_parts, res8x_unet_parts])
@pytest.mark.parametrize("upsample", [1, 2])
@pytest.mark.parametrize("decoder", [False, True])
def test_cells_cover_the_range(parts, upsample, decoder):
    detector, sweep = make_detector(parts, upsample, decoder), scene()
    output = detector(batch((sweep.xyz, sweep.point_feats)))
    assert output.heat_logits.shape[-2:] == detector.grid.shape == (10 * upsample, 12 * upsample)
    rows, columns = detector.grid.shape
    assert detector.grid.low == RANGE[:2]
    assert RANGE[0] + columns * detector.grid.cell[0] == pytest.approx(RANGE[3])
    assert RANGE[1] + rows * detector.grid.cell[1] == pytest.approx(RANGE[4])
    assert detector.grid.cell == pytest.approx((1.6 / upsample, 1.6 / upsample))
    assert bool(detector.grid.holds(sweep.gt_boxes.boxes3d).all())


@pytest.mark.parametrize("decoder", [False, True])
def test_the_decoder_rests_where_the_head_does_not_see_it(decoder):
    detector, sweep = make_detector(decoder=decoder), scene()
    losses = detector.losses(batch((sweep.xyz, sweep.point_feats)), [sweep.gt_boxes])
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        resting = not decoder and name.startswith(tuple(f"backbone.{part}" for part in DECODER))
        assert (parameter.grad is None) == resting == (not parameter.requires_grad), name


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 60), st.integers(1, 4))
def test_the_strongest_of_cells_equals_a_loop(seed, num_voxels, voxels_per_cell):
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([2, 3, 9, 11])
    coords = torch.unique((torch.rand(num_voxels, 4, generator=generator) * size).int(), dim=0)
    features = torch.rand(len(coords), 5, generator=generator)
    shape = (max(9 // voxels_per_cell, 1), max(11 // voxels_per_cell, 1))
    grid = VoxelGrid(coords, torch.zeros(0, dtype=torch.int64), (3, 9, 11), 2)
    expected = torch.zeros(2, 5, *shape)
    for (frame, _, y, x), feature in zip(coords.tolist(), features, strict=True):
        place = (frame, slice(None), min(y // voxels_per_cell, shape[0] - 1), min(x // voxels_per_cell, shape[1] - 1))
        expected[place] = torch.maximum(expected[place], feature)
    assert torch.equal(strongest_of_cells(features, grid, shape, voxels_per_cell), expected)


@pytest.mark.parametrize("parts", [unet_v2_parts, res8x_unet_parts])
def test_encoding_and_decoding_at_once_are_both(parts):
    detector, sweep = make_detector(parts, decoder=True).eval(), scene()
    points = batch((sweep.xyz, sweep.point_feats))
    grid = detector.voxelizer(points)
    voxels = (detector.encoder(points, grid), grid.voxel_coords, grid.num_frames)
    bird_eye, decoded = detector.backbone.encode_and_decode(*voxels)
    assert torch.equal(bird_eye, detector.backbone.encode(*voxels))
    assert torch.equal(decoded, detector.backbone(*voxels))


def test_cells_that_cut_voxels_are_refused():
    with pytest.raises(ConfigError, match=r"detector.upsample: with detector.decoder expected 1, 2, 4 or 8, got 3"):
        make_detector(upsample=3, decoder=True)
    make_detector(upsample=3)


def test_sweeps_of_a_batch_do_not_see_each_other():
    detector, sweep = make_detector().eval(), scene()
    one = (sweep.xyz, sweep.point_feats)
    other = (sweep.xyz * torch.tensor([1.0, -1, 1]), sweep.point_feats)
    together, alone = detector(batch(one, other)), detector(batch(one))
    torch.testing.assert_close(together.heat_logits[:1], alone.heat_logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("decoder", [False, True])
def test_a_sweep_without_points_in_range_has_boxes_at_the_initial_score_at_most(decoder):
    detector = make_detector(decoder=decoder).eval()
    output = detector(batch((torch.full((3, 3), 90.0), torch.zeros(3, 2))))
    assert output.heat_logits.shape == (1, 3, 20, 24)


def test_a_network_without_a_bird_eye_view_is_refused():
    with pytest.raises(ConfigError, match="has no bird's-eye view; take unet_v2, res8x_unet"):
        make_detector(fsd_unet_parts)


@pytest.mark.parametrize("size", [(7, 9), (8, 8), (1, 5)])
@pytest.mark.parametrize("upsample", [1, 2])
def test_the_neck_keeps_odd_sizes(size, upsample):
    neck = BirdEyeNeck(6, (1, 0), (8, 12), (4, 5), upsample)
    assert neck(torch.randn(2, 6, *size)).shape == (2, 9, size[0] * upsample, size[1] * upsample)
    assert neck.out_channels == 9


@pytest.mark.parametrize("wrong", [{"layers": (1,)}, {"channels": (0, 4)}, {"upsample": 0}, {"up_channels": (1, 2, 3)}])
def test_wrong_sizes_are_refused(wrong):
    with pytest.raises(ConfigError, match="detector"):
        BirdEyeNeck(6, **wrong)


@pytest.mark.slow
def test_one_sweep_is_learned_by_heart():
    detector, sweep = make_detector(decoder=True), scene()
    for part in detector.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.momentum = 0.1
    points = batch((sweep.xyz, sweep.point_feats))
    optimiser = torch.optim.AdamW([one for one in detector.parameters() if one.requires_grad], lr=3e-3)
    steps = 150
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        optimiser.zero_grad()
        sum(detector.losses(points, [sweep.gt_boxes]).values()).backward()
        optimiser.step()
    (found,) = detector.eval().predict(points)
    evaluator = DetectionEvaluator3D(("Vehicle", "Pedestrian", "Cyclist"))
    evaluator.add(
        Detections3D("frame", found.boxes3d, found.labels, found.scores),
        Objects3D("frame", sweep.gt_boxes.boxes3d, sweep.gt_boxes.labels, torch.ones(4, dtype=torch.int64)),
    )
    scores = evaluator.compute()
    assert scores["ap_l1"] == pytest.approx(1.0, abs=1e-6)
    assert scores["aph_l1"] > 0.95
