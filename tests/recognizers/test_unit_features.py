"""Features of units: what they say, and that the recognizer stays as it was."""

from collections.abc import Callable

import numpy as np

from recognizers.criteria import criterion
from recognizers.recognizer import Recognizer
from recognizers.unit_features import UNIT_FEATURES, kept_shares, unit_features

MakeRecognizer = Callable[..., Recognizer]


def test_columns_follow_their_criteria_within_each_layer(make_recognizer: MakeRecognizer) -> None:
    recognizer = make_recognizer()
    features = unit_features(recognizer)
    assert features.shape == (recognizer.n_units, len(UNIT_FEATURES)) and features.dtype == np.float32
    assert np.isfinite(features).all()
    for column, name in enumerate(("l1", "bn", "hrank", "reap")):
        scores = criterion(name)(recognizer, np.random.default_rng(0))
        for layer in recognizer.table.layers:
            own, expected = features[layer.units, column].astype(np.float64), scores[layer.units]
            if name == "reap":
                assert ((own >= 0) & (own <= 1)).all()
            elif expected.std() > 0:
                np.testing.assert_allclose(own, ((expected - expected.mean()) / expected.std()).clip(-3, 3), atol=1e-4)
            order = np.argsort(expected, kind="stable")
            assert (np.diff(own[order]) >= -1e-6).all()


def test_cost_shares_are_those_of_removing_the_unit_alone(make_recognizer: MakeRecognizer) -> None:
    recognizer = make_recognizer()
    features = unit_features(recognizer)
    for unit in (0, recognizer.n_units - 1):
        mask = np.ones(recognizer.n_units, dtype=np.int8)
        mask[unit] = 0
        expected = np.array(recognizer.costs.reductions(mask)[:2]) * recognizer.n_units
        np.testing.assert_allclose(features[unit, 4:], expected, rtol=1e-5)


def test_they_are_those_of_the_complete_network_and_computed_once(make_recognizer: MakeRecognizer) -> None:
    recognizer = make_recognizer()
    recognizer.zero_out(np.array([1, 2]))
    mask = recognizer.mask
    features = unit_features(recognizer)
    np.testing.assert_array_equal(recognizer.mask, mask)
    recognizer.reset()
    assert unit_features(recognizer) is features


def test_kept_shares_equal_counting(make_recognizer: MakeRecognizer) -> None:
    recognizer = make_recognizer()
    mask = np.random.default_rng(0).integers(0, 2, recognizer.n_units).astype(np.int8)
    shares = kept_shares(recognizer, mask)
    for layer in recognizer.table.layers:
        assert set(shares[layer.units].tolist()) == {np.float32(mask[layer.units].mean())}
