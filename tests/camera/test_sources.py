import torch

from camera.sources import PositiveAggregation


def made_up(num_samples=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    prob = torch.rand(num_samples, 4, 5, generator=generator)
    score, iou = torch.rand(2, num_samples, generator=generator)
    return prob, score, iou


def test_both_published_forms_come_from_one_function():
    prob, score, iou = made_up()
    gt_index = torch.tensor([0, 2, 2, 0, 4, 2, 4])
    for mu, use_cls in ((1.0, True), (5.0, False)):
        target = PositiveAggregation(mu=mu, use_cls=use_cls)(prob, score, iou, gt_index, 5)
        assert target.present.tolist() == [True, False, True, False, True]
        for gt in (0, 2, 4):
            mine = gt_index == gt
            weight = (mu * iou[mine]).exp() * (score[mine] if use_cls else 1)
            expected = (weight[:, None, None] * prob[mine]).sum(0) / weight.sum()
            torch.testing.assert_close(target.per_gt[gt], expected)
        assert not target.per_gt[[1, 3]].any()


def test_a_single_positive_is_its_own_pseudo_mask():
    prob, score, iou = made_up(1)
    for score_of_class in (score, torch.zeros(1)):  # even of a class the teacher does not see at all
        target = PositiveAggregation()(prob, score_of_class, iou, torch.tensor([0]), 1)
        torch.testing.assert_close(target.per_gt, prob)
        assert target.present.all()


def test_no_positives_and_no_gradient():
    empty = torch.zeros(0)
    target = PositiveAggregation()(torch.zeros(0, 4, 5), empty, empty, empty.long(), 3)
    assert target.per_gt.shape == (3, 4, 5)
    assert not target.present.any()
    prob, score, iou = made_up(2)
    assert not PositiveAggregation()(prob.requires_grad_(), score, iou, torch.tensor([0, 0]), 1).per_gt.requires_grad
