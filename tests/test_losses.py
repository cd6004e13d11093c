"""Losses, with values worked out by hand."""

import math

import pytest
import torch

from glimpseg.losses import (
    FusionOutputs,
    binary_cross_entropy,
    downsample_target,
    one_hot,
    region_fusion_terms,
    soft_dice_loss,
    weighted_cross_entropy,
)
from glimpseg.region import Label


def row(*values):
    """A map whose voxels lie along z."""
    return torch.tensor(values, dtype=torch.float32)[None, None]


def batch_of(*samples):
    """Samples of classes of rows of voxels: b k 1 1 z."""
    return torch.stack([torch.stack([row(*voxels) for voxels in classes]) for classes in samples])


def test_soft_dice_pools_the_batch_and_averages_the_classes():
    probabilities = batch_of([(1, 0.5), (0.2, 0)], [(0, 0.5), (0.4, 0.4)])
    target = batch_of([(1, 1), (0, 0)], [(0, 0), (1, 0)])
    # Class 1: both 1.5, total 2 + 2: 3 / 4. Class 2: both 0.4, total 1 + 1: 0.8 / 2. Mean 0.575.
    assert float(soft_dice_loss(probabilities, target, smooth=(0, 0))) == pytest.approx(1 - 0.575)


def test_smoothing_stands_in_numerator_and_denominator():
    probabilities, target = batch_of([(0.5, 0.5)]), batch_of([(1, 0)])
    # (2 * 0.5 + 1) / (1 + 1 + 2) = 1 / 2.
    assert float(soft_dice_loss(probabilities, target, smooth=(1, 2))) == pytest.approx(0.5)


def test_smoothing_is_too_small_to_matter_where_there_is_tumour():
    probabilities, target = batch_of([(0, 0)]), batch_of([(1, 1)])
    # 1e-5 / (2 + 1e-5).
    assert 1 - float(soft_dice_loss(probabilities, target)) == pytest.approx(5e-6, rel=0.05)


def test_a_class_that_is_nowhere_and_predicted_nowhere_costs_nothing():
    assert float(soft_dice_loss(batch_of([(0, 0)]), batch_of([(0, 0)]))) == pytest.approx(0, abs=1e-6)


def test_binary_cross_entropy_is_the_mean_over_all_voxels():
    three_to_one = math.log(3)  # its sigmoid is 3 / 4
    logits, target = batch_of([(three_to_one, 0), (three_to_one, -three_to_one)]), batch_of([(1, 1), (0, 0)])
    # -log of 3/4, 1/2, 1/4 and 3/4.
    expected = (math.log(4 / 3) + math.log(2) + math.log(4) + math.log(4 / 3)) / 4
    assert float(binary_cross_entropy(logits, target)) == pytest.approx(expected)


def test_a_coarse_target_is_the_mean_over_the_voxels_that_each_covers():
    target = torch.zeros(1, 2, 2, 4, 4)
    target[0, 0, 0, 0, 0] = target[0, 0, 1, 1, 1] = target[0, 0, 0, 2, 3] = (
        1  # two in one block of eight, one in another
    )
    target[0, 1] = 1
    coarse = downsample_target(target, torch.Size((1, 2, 2)))
    assert coarse[0, 0, 0].tolist() == [[2 / 8, 0], [0, 1 / 8]]
    assert coarse[0, 1].unique().tolist() == [1]


def test_a_coarse_target_may_be_coarser_along_one_axis_alone():
    assert downsample_target(batch_of([(1, 0, 1, 1)]), torch.Size((1, 1, 2))).flatten().tolist() == [0.5, 1]


def test_a_target_at_full_resolution_stays_as_it_is():
    target = batch_of([(1, 0)])
    assert downsample_target(target, target.shape[2:]) is target


def test_background_comes_first_and_labels_in_their_order():
    maps = one_hot(torch.tensor([[[[0, 3, 1, 2]]]]), (Label.ET, Label.NCR))
    # Columns are voxels; 2 (ED) has no map, so it is background.
    assert maps[0, :, 0, 0].tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]


def test_each_sample_has_its_own_weighted_cross_entropy():
    target = batch_of([(1, 0), (0, 1)], [(1, 1), (0, 0)])
    probabilities = batch_of([(0.5, 0.75), (0.5, 0.25)], [(0.5, 0.5), (0.5, 0.5)])
    # First sample: each class is half of the voxels, weight 1/2: (log 2 + log 4) / 2 / 2 voxels.
    # Second sample: its one class is everywhere, weight 0.
    expected = [(math.log(2) + math.log(4)) / 4, 0]
    assert weighted_cross_entropy(probabilities, target).tolist() == pytest.approx(expected)


def test_the_logarithm_stops_at_one_in_two_hundred():
    target, probabilities = batch_of([(1, 0), (0, 1)]), batch_of([(1, 1), (0, 0)])
    # The second voxel is missed: -log(0.005), weight 1/2, mean over 2 voxels.
    assert weighted_cross_entropy(probabilities, target).tolist() == pytest.approx([math.log(200) / 4])


def fusion(*, deep=(), has=(True, True)):
    """Terms for half a tumour: the fused output has 1/2 everywhere, one modality is right with 3/4, one with 1/4."""
    target = batch_of([(1, 0), (0, 1)])
    half, right, wrong = (batch_of([(p, 1 - p), (1 - p, p)]) for p in (0.5, 0.75, 0.25))
    maps = FusionOutputs(
        half, torch.stack([right, wrong], 1), [{"right": right, "wrong": wrong}[name] for name in deep]
    )
    return {name: term.item() for name, term in region_fusion_terms(maps, target, torch.tensor([has])).items()}


def cost(p):
    """Losses of a probability p for the right class in both voxels.

    Cross-entropy: -log(p), weight 1/2. Dice: 1 - 2p / (1 + 1).
    """
    return -math.log(p) / 2, 1 - p


def test_the_fused_output_has_a_cross_entropy_and_a_dice_of_weight_one():
    terms = fusion()
    assert [terms["fuse/ce"], terms["fuse/dice"]] == pytest.approx(cost(1 / 2))


def test_terms_of_single_modalities_add_up():
    terms, (right, wrong) = fusion(), (cost(3 / 4), cost(1 / 4))
    assert [terms["sep/ce"], terms["sep/dice"]] == pytest.approx([right[0] + wrong[0], right[1] + wrong[1]])


def test_a_modality_that_no_sample_has_costs_nothing():
    terms = fusion(has=(True, False))
    assert [terms["sep/ce"], terms["sep/dice"]] == pytest.approx(cost(3 / 4))


def test_terms_of_deep_maps_add_up():
    terms, (right, wrong) = fusion(deep=("right", "wrong", "wrong")), (cost(3 / 4), cost(1 / 4))
    assert [terms["prm/ce"], terms["prm/dice"]] == pytest.approx([right[0] + 2 * wrong[0], right[1] + 2 * wrong[1]])


def test_without_deep_maps_their_terms_are_zero():
    terms = fusion()
    assert (terms["prm/ce"], terms["prm/dice"]) == (0, 0)


def test_cross_entropy_of_a_modality_is_the_mean_over_the_samples_that_have_it():
    target = torch.cat([batch_of([(1, 0), (0, 1)])] * 3)
    right, wrong = (batch_of([(p, 1 - p), (1 - p, p)]) for p in (0.75, 0.25))
    singles = torch.cat([right, wrong, wrong])[:, None]
    terms = region_fusion_terms(
        FusionOutputs(singles[:, 0], singles, []), target, torch.tensor([[True], [True], [False]])
    )
    # Samples 1 and 2: (log 4/3 + log 4) / 2 with weight 1/2; Dice of both pooled: 2 * (1.5 + 0.5) / (4 + 4) a class.
    assert float(terms["sep/ce"]) == pytest.approx((math.log(4 / 3) + math.log(4)) / 4)
    assert float(terms["sep/dice"]) == pytest.approx(0.5)
