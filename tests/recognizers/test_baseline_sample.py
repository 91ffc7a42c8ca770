"""A baseline with a sample of its reward images; what is measured on one is not taken for what the other gives."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from recognizers.baseline import Baseline
from recognizers.evaluation import accuracy
from recognizers.recognizer import Recognizer
from recognizers.recovery import BatchNormRecovery


@pytest.fixture(scope="module")
def baseline(make_recognizer: Callable[..., Recognizer]) -> Baseline:
    return make_recognizer().baseline


def test_a_fixed_sample_of_the_reward_images_alone(baseline: Baseline) -> None:
    sample, again = baseline.sample(30), baseline.sample(30)
    reward, everything = sample.splits.reward, baseline.splits.reward
    assert len(reward.images) == len(reward.labels) == 30 < len(everything.labels)
    assert torch.equal(reward.images, again.splits.reward.images)
    found = [int((everything.images == image).flatten(1).all(1).nonzero()[0]) for image in reward.images]
    assert torch.equal(everything.labels[found], reward.labels)
    assert found != sorted(found), "not just the first ones"
    for part in ("train", "selection", "test"):
        assert getattr(sample.splits, part) is getattr(baseline.splits, part)
    assert sample.network is baseline.network and sample.table is baseline.table


def test_more_images_than_there_are_means_all(baseline: Baseline) -> None:
    sample = baseline.sample(10**6).splits.reward
    assert len(sample.labels) == len(baseline.splits.reward.labels)


def test_figures_stay_apart(baseline: Baseline) -> None:
    mask = np.ones(baseline.table.n_units, dtype=np.int8)
    mask[[0, 1, 2, 7, 8, 9, 10]] = 0
    figures: list[tuple[float, float]] = []
    assert len(torch.cat(baseline.reward)) == len(baseline.splits.reward.labels), "prepared before they are sampled"
    for one in (baseline, baseline.sample(7), baseline.sample(7), baseline):
        recognizer = Recognizer(one, recovery=BatchNormRecovery(images=40))
        full = recognizer.baseline_accuracy()
        recognizer.load_mask(mask)
        logits, labels = recognizer.logits(), one.splits.reward.labels
        assert len(logits) == len(labels) == sum(map(len, one.reward))
        assert recognizer.accuracy() == accuracy(logits, labels)
        figures.append((full, recognizer.accuracy()))
    assert figures[0] == figures[3] != figures[1] == figures[2]


def test_probed_logits_are_those_of_loaded_masks(baseline: Baseline) -> None:
    recognizer = Recognizer(baseline, recovery=BatchNormRecovery(images=40))
    masks = np.ones((4, baseline.table.n_units), dtype=np.int8)
    masks[1, [3, 8]] = masks[2, [15]] = masks[3, [0, 1, 15]] = 0
    recognizer.load_mask(masks[1])
    before = recognizer.logits()
    probed = recognizer.probe_logits(list(masks))
    assert np.array_equal(recognizer.mask, masks[1]) and torch.equal(recognizer.logits(), before)
    for mask, logits in zip(masks, probed, strict=True):
        fresh = Recognizer(baseline, recovery=recognizer.recovery, cache_megabytes=0)
        fresh.load_mask(mask)
        assert torch.equal(fresh.logits(), logits)
