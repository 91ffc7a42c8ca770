"""Criteria score units; tied filters add up."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from recognizers.criteria import comparable_scores, criteria, criterion, layer_normalised, register_criterion
from recognizers.errors import ConfigurationError, UnknownNameError
from recognizers.recognizer import Recognizer


@pytest.fixture
def recognizer(make_recognizer: Callable[..., Recognizer]) -> Recognizer:
    return make_recognizer()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 4, 1)
        self.head = nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).relu()
        return self.head((x + self.c(self.b(x).relu())).relu().mean((2, 3)))


def test_l1_by_hand(make_recognizer: Callable[..., Recognizer]) -> None:
    torch.manual_seed(0)
    network = Residual()
    recognizer = make_recognizer(network=network)
    scores = criterion("l1")(recognizer, np.random.default_rng(0))

    def norm(conv: nn.Conv2d) -> np.ndarray:
        return conv.weight.detach().double().abs().sum((1, 2, 3)).numpy()

    np.testing.assert_allclose(scores, np.concatenate([norm(network.a) + norm(network.c), norm(network.b)]))


def test_l2_by_hand(make_recognizer: Callable[..., Recognizer]) -> None:
    torch.manual_seed(0)
    network = Residual()
    scores = criterion("l2")(make_recognizer(network=network), np.random.default_rng(0))

    def norm(conv: nn.Conv2d) -> np.ndarray:
        return conv.weight.detach().double().square().sum((1, 2, 3)).sqrt().numpy()

    np.testing.assert_allclose(scores, np.concatenate([norm(network.a) + norm(network.c), norm(network.b)]))


class Normed(Residual):
    """One batch norm of its own, one on the sum, one without parameters; a layer has none."""

    def __init__(self) -> None:
        super().__init__()
        self.d = nn.Conv2d(4, 6, 1)
        self.own, self.summed = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.bare = nn.BatchNorm2d(5, affine=False)
        self.head = nn.Linear(6, 10)
        for norm in (self.own, self.summed):
            nn.init.normal_(norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.own(self.a(x)).relu()
        x = self.summed(x + self.c(self.bare(self.b(x)).relu()))
        return self.head(self.d(x.relu()).relu().mean((2, 3)))


def test_bn_by_hand(make_recognizer: Callable[..., Recognizer]) -> None:
    torch.manual_seed(0)
    network = Normed()
    recognizer = make_recognizer(network=network)
    scores, norms = (criterion(name)(recognizer, np.random.default_rng(0)) for name in ("bn", "l2"))
    sums = (network.own.weight.abs() + network.summed.weight.abs()).detach().numpy()
    expected = {"a": sums, "b": np.ones(5), "d": norms[recognizer.table.layer("d").units]}
    assert [layer.name for layer in recognizer.table.layers] == list(expected)
    np.testing.assert_allclose(scores, np.concatenate(list(expected.values())), rtol=1e-6)


def test_random_follows_from_the_generator(recognizer: Recognizer) -> None:
    random = criterion("random")
    first, again, other = (random(recognizer, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", criteria())
def test_every_criterion_scores_every_unit_and_changes_nothing(name: str, recognizer: Recognizer) -> None:
    recognizer.zero_out(np.array([0, 7]))
    mask, before = recognizer.mask, {key: value.clone() for key, value in recognizer.network.state_dict().items()}
    scores = criterion(name)(recognizer, np.random.default_rng(0))
    assert scores.shape == (recognizer.n_units,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) > recognizer.n_units / 2, "scores that tell units apart"
    assert np.array_equal(recognizer.mask, mask)
    assert all(torch.equal(before[key], value) for key, value in recognizer.network.state_dict().items())


def test_normalised_scores_average_one_in_each_layer(recognizer: Recognizer) -> None:
    scores = layer_normalised(criterion("l1")(recognizer, np.random.default_rng(0)), recognizer)
    for layer in recognizer.table.layers:
        assert scores[layer.start : layer.stop].mean() == pytest.approx(1)
    assert layer_normalised(np.zeros(recognizer.n_units), recognizer).tolist() == [0.0] * recognizer.n_units


@pytest.mark.parametrize("name", ["grasp", "synflow"])
def test_some_scores_compare_across_layers_as_they_are(name: str, recognizer: Recognizer) -> None:
    scores = criterion(name)(recognizer, np.random.default_rng(0))
    assert np.array_equal(comparable_scores(criterion(name), recognizer, np.random.default_rng(0)), scores)


@pytest.mark.parametrize("name", ["l1", "bn", "hrank", "taylor", "snip", "reap"])
def test_others_are_normalised_first(name: str, recognizer: Recognizer) -> None:
    scores = criterion(name)(recognizer, np.random.default_rng(0))
    compared = comparable_scores(criterion(name), recognizer, np.random.default_rng(0))
    assert np.array_equal(compared, layer_normalised(scores, recognizer))


def test_unknown_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="unknown criterion 'l11': did you mean 'l1'"):
        criterion("l11")


def test_names_are_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recognizers.criteria.registry._CRITERIA._entries", {"l1": criterion("l1")})

    @register_criterion("mine")
    def mine(recognizer: Recognizer, generator: np.random.Generator) -> np.ndarray:
        return np.arange(recognizer.n_units, dtype=np.float64)

    assert criterion("mine") is mine
    assert criteria() == ["l1", "mine"]
    with pytest.raises(ConfigurationError, match="'mine' is registered already"):
        register_criterion("mine")(mine)
