import pytest
import torch

from camera.point_to_mask.local_affinity import affinity_loss, local_affinity, refined_loss
from mwsis.core.instances import BACKGROUND, IGNORE
from tests.reference import p2seg as slow


def everywhere(*shape):
    return torch.ones(shape, dtype=torch.bool)


def random_maps(seed, batch=2, depth=5, height=7, width=9):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, depth, height, width, generator=generator)
    prob = torch.rand(batch, 4, height, width, generator=generator).softmax(1)
    instances = torch.randint(-2, 3, (batch, height, width), generator=generator)
    return features, prob, instances


@pytest.mark.parametrize(("radius", "size"), [(1, (7, 9)), (3, (7, 9)), (8, (4, 6)), (8, (1, 5)), (2, (1, 1))])
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_refined_classes_equal_the_dense_form(radius, size, beta):
    features, prob, _ = random_maps(radius, height=size[0], width=size[1])
    found = local_affinity(features, everywhere(2, *size), radius).refined(prob, beta)
    for one, own, result in zip(features, prob, found, strict=True):
        matrix = slow.transition(one, radius, beta)
        expected = (matrix @ own.reshape(4, -1).T).T.reshape(4, *size)
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_loss_equals_the_dense_form(radius):
    features, _, instances = random_maps(radius, height=5, width=6)
    found = affinity_loss(local_affinity(features, everywhere(2, 5, 6), radius), instances)
    expected = slow.affinity_loss(list(zip(features, instances, strict=True)), radius)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_rows_add_up_to_one_and_one_instance_stays_itself():
    features, _, _ = random_maps(0)
    affinity = local_affinity(features, everywhere(2, 7, 9), 3)
    ones = torch.ones(2, 1, 7, 9)
    torch.testing.assert_close(affinity.refined(ones), ones)
    same = torch.tensor([0.1, 0.7, 0.2])[None, :, None, None].expand(2, 3, 7, 9)
    torch.testing.assert_close(affinity.refined(same), same)


def test_cells_that_look_apart_keep_their_classes():
    features = torch.zeros(1, 2, 6, 8)
    features[:, 0, :, :4], features[:, 0, :, 4:] = 40.0, -40.0
    prob = torch.zeros(1, 2, 6, 8)
    prob[:, 0, :, :4], prob[:, 1, :, 4:] = 1.0, 1.0
    refined = local_affinity(features, everywhere(1, 6, 8), 8).refined(prob)
    torch.testing.assert_close(refined, prob)


def test_padding_does_not_take_part():
    features, prob, instances = random_maps(5)
    content = everywhere(2, 7, 9)
    content[:, 5:], content[:, :, 6:] = False, False
    whole = local_affinity(features, content, 3)
    part = local_affinity(features[:, :, :5, :6], everywhere(2, 5, 6), 3)
    torch.testing.assert_close(whole.refined(prob)[:, :, :5, :6], part.refined(prob[:, :, :5, :6]))
    assert float(affinity_loss(whole, instances)) == pytest.approx(float(affinity_loss(part, instances[:, :5, :6])))


def test_gradients_equal_those_of_the_dense_form():
    features, prob, _ = random_maps(1, batch=1, height=4, width=5)
    features, prob = features.double().requires_grad_(), prob.double().requires_grad_()
    semantic = torch.randint(0, 4, (1, 4, 5))
    refined_loss(local_affinity(features, everywhere(1, 4, 5), 2).refined(prob), semantic).backward()
    found = features.grad.clone(), prob.grad.clone()
    features.grad = prob.grad = None
    mixed = slow.transition(features[0], 2, 1.0) @ prob[0].reshape(4, -1).T
    (-mixed.log().gather(1, semantic.reshape(-1, 1))).mean().backward()
    torch.testing.assert_close(found[0], features.grad)
    torch.testing.assert_close(found[1], prob.grad)


def test_unknown_pixels_do_not_count_in_the_loss_of_refined_classes():
    refined = torch.tensor([[0.25, 0.5], [0.75, 0.5]]).reshape(1, 2, 1, 2)
    semantic = torch.tensor([[[1, 255]]])
    assert float(refined_loss(refined, semantic)) == pytest.approx(-torch.tensor(0.75).log().item())
    assert float(refined_loss(refined, torch.full_like(semantic, 255))) == 0.0


def test_p2seg_defect_03_affinity_reaches_zero_and_one():
    features = torch.zeros(1, 1, 1, 3)
    features[..., 0], features[..., 1], features[..., 2] = 12.0, 12.0, -12.0
    affinity = local_affinity(features, everywhere(1, 1, 3), 1)
    assert float(affinity_loss(affinity, torch.tensor([[[0, 0, 1]]]))) < 1e-6
    assert float(affinity_loss(affinity, torch.tensor([[[0, 1, 1]]]))) > 0.999


def test_p2seg_defect_04_background_takes_part_and_weights_add_up_by_target():
    features = 3 * torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    prob = torch.rand(1, 3, 6, 6).softmax(1)
    refined = local_affinity(features, everywhere(1, 6, 6), 3).refined(prob)
    torch.testing.assert_close(refined.sum(1), torch.ones(1, 6, 6))
    assert not torch.allclose(refined[:, 0], prob[:, 0], atol=1e-3)


def test_p2seg_defect_05_beta_matters():
    features, prob, _ = random_maps(2)
    affinity = local_affinity(features, everywhere(2, 7, 9), 3)
    assert not torch.allclose(affinity.refined(prob, 1.0), affinity.refined(prob, 3.0), atol=1e-3)


def test_p2seg_defect_06_two_instances_of_a_class_are_told_apart_and_background_pairs_do_not_count():
    features = torch.full((1, 1, 1, 4), 10.0)  # everything looks alike
    affinity = local_affinity(features, everywhere(1, 1, 4), 1)
    of_one_class = torch.tensor([[[0, 0, 1, 1]]])
    assert float(affinity_loss(affinity, of_one_class)) == pytest.approx(0.5, abs=1e-3)
    background = torch.full((1, 1, 4), BACKGROUND)
    assert float(affinity_loss(affinity, background)) == 0.0
    assert float(affinity_loss(affinity, torch.full((1, 1, 4), IGNORE))) == 0.0


def test_p2seg_defect_07_all_instances_of_an_image_are_positives():
    features = torch.zeros(1, 1, 1, 6, requires_grad=True)
    affinity = local_affinity(features + 1, everywhere(1, 1, 6), 1)
    affinity_loss(affinity, torch.tensor([[[0, 0, -1, 1, 1, -1]]])).backward()
    assert features.grad[0, 0, 0].tolist() == pytest.approx(
        [features.grad[0, 0, 0, 0].item()] * 2 + [0.0] + [features.grad[0, 0, 0, 0].item()] * 2 + [0.0]
    )
    assert features.grad[0, 0, 0, 0] < 0


def test_p2seg_defect_08_images_of_a_batch_do_not_mix():
    features, prob, instances = random_maps(7)
    content = everywhere(2, 7, 9)
    both = local_affinity(features, content, 3)
    alone = [local_affinity(features[i : i + 1], content[i : i + 1], 3) for i in range(2)]
    for i in range(2):
        torch.testing.assert_close(both.refined(prob)[i : i + 1], alone[i].refined(prob[i : i + 1]))
    unknown = torch.stack([instances[0], torch.full_like(instances[1], IGNORE)])
    assert float(affinity_loss(both, unknown)) == pytest.approx(float(affinity_loss(alone[0], instances[:1])))
