"""Reconstructed layers compute what least squares by numpy gives for what they see; the rest is left as it was."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import torch
from fitted_networks import NETWORKS, SITES, columns_of, inputs_and_outputs, make_baseline, rows_of
from torch import Tensor, nn

from recognizers.baseline import Baseline
from recognizers.data import Normalization, Splits
from recognizers.recognizer import Recognizer
from recognizers.reconstruction.layer import affine, parts
from recognizers.recovery import BatchNormRecovery, NoRecovery, ReconstructRecovery, Recovery, UnifyRecovery
from recognizers.units import UnitTable

Form = Literal["asymmetric", "symmetric", "independent"]
FORMS: tuple[Form, ...] = ("asymmetric", "symmetric", "independent")
IMAGES = 120


def _recovery(form: str, **settings: Any) -> Recovery:
    """On all images and places."""
    common = {"images": IMAGES, "positions": 64, "batch_size": 50}
    if form == "unify":
        return UnifyRecovery.model_validate(common | settings)
    return ReconstructRecovery.model_validate({"form": form} | common | settings)


@pytest.fixture(scope="module")
def baselines(digits: tuple[Splits, Normalization], enliven: Callable[..., nn.Module]) -> dict[str, Baseline]:
    return {name: make_baseline(digits, enliven, build, IMAGES) for name, build in NETWORKS.items()}


def _thinned(table: UnitTable, seed: int) -> np.ndarray:
    """A mask under which every layer has lost something."""
    generator, mask = np.random.default_rng(seed), np.ones(table.n_units, dtype=np.int8)
    for layer in table.layers:
        mask[generator.choice(layer.units, size=int(generator.integers(1, len(layer))), replace=False)] = 0
    return mask


def _pruned(baseline: Baseline, recovery: Recovery, mask: np.ndarray) -> Recognizer:
    recognizer = Recognizer(baseline, recovery=recovery)
    recognizer.load_mask(mask)
    return recognizer


@dataclass
class Seen:
    """A layer with its norm in the original and in the masked network, its inputs there, and what it aims at."""

    layer: nn.Module
    norm: nn.Module
    inputs: Tensor
    targets: Tensor
    lost: bool
    kept: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, recognizer: Recognizer, form: str, site: tuple[str, str | None, str | None]) -> "Seen":
        path, norm, other = site
        original, masked = recognizer.baseline.network, recognizer.network
        images = recognizer.baseline.calibration(IMAGES)
        before, after = inputs_and_outputs(original, images), inputs_and_outputs(masked, images)
        inputs = before[path][0] if form == "independent" else after[path][0]
        targets = before[norm or path][1]
        old_norm = nn.Identity() if norm is None else original.get_submodule(norm)
        if form == "symmetric":
            targets = old_norm(original.get_submodule(path)(inputs))
        elif form == "asymmetric" and other is not None:
            targets = targets + before[other][1] - after[other][1]
        slot, mask = recognizer.table.slots.get(path), recognizer.mask
        units = None if slot is None else slot.in_units
        outs = None if slot is None else slot.out_units
        kept = np.ones(targets.shape[1], dtype=bool) if outs is None else (outs < 0) | (mask[outs] != 0)
        return cls(
            masked.get_submodule(path),
            nn.Identity() if norm is None else masked.get_submodule(norm),
            inputs,
            rows_of(targets)[:, kept],
            units is not None and not mask[units[units >= 0]].all(),
            torch.from_numpy(kept),
        )

    @property
    @torch.no_grad()
    def outputs(self) -> Tensor:
        """Of the fitted layer, ``[N, kept]``."""
        return rows_of(self.norm(self.layer(self.inputs)))[:, self.kept]

    @property
    @torch.no_grad()
    def read(self) -> list[np.ndarray]:
        """The columns of each group that it reads, a constant one last where it can have an offset."""
        zero_out: Any = getattr(self.layer, "zero_out", nn.Identity())
        columns = columns_of(self.layer, zero_out(self.inputs))
        groups = self.layer.groups if isinstance(self.layer, nn.Conv2d) else 1
        constant = columns.new_ones(len(columns), int(self.offset))
        return [torch.cat([part, constant], 1).numpy() for part in columns.chunk(groups, 1)]

    @property
    def offset(self) -> bool:
        return self.layer.bias is not None or not isinstance(self.norm, nn.Identity)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_layers_that_lost_inputs_are_best_for_what_they_see(
    baselines: dict[str, Baseline], name: str, form: Form
) -> None:
    baseline = baselines[name]
    for seed in (0, 1):
        recognizer = _pruned(baseline, _recovery(form, ridge=0), _thinned(baseline.table, seed))
        checked = 0
        for site in SITES[name]:
            seen = Seen.of(recognizer, form, site)
            if not seen.lost:
                continue
            scale, groups = float(seen.targets.std()), len(seen.read)
            for columns, wanted, given in zip(
                seen.read, seen.targets.chunk(groups, 1), seen.outputs.chunk(groups, 1), strict=True
            ):
                best = columns @ np.linalg.lstsq(columns, wanted.numpy(), rcond=None)[0]
                assert np.abs(best - wanted.numpy()).max() > 1e-3 * scale, "it cannot do everything"
                torch.testing.assert_close(given, torch.from_numpy(best), rtol=1e-3, atol=1e-3 * scale)
            checked += 1
        assert checked >= len(baseline.table.layers) - 1, "all but what only the depthwise convolution reads"


FEEDING = {"chain": ("4", "5", None), "residual": ("two.conv1", "two.norm1", None), "grouped": ("point", "norm4", None)}
"""Layers that may lose no inputs behind others that have."""


class TestRefit:
    """Layers behind a pruned one that have lost no inputs."""

    def _seen(self, baseline: Baseline, name: str, **settings: Any) -> tuple[Seen, Tensor, Tensor]:
        """The layer, and its affine map before and after, rows of kept outputs."""
        slot, mask = baseline.table.slots[FEEDING[name][0]], _thinned(baseline.table, 5)
        if slot.in_units is not None:
            mask[slot.in_units] = 1
        recognizer = _pruned(baseline, _recovery("asymmetric", **settings), mask)
        seen = Seen.of(recognizer, "asymmetric", FEEDING[name])
        assert not seen.lost
        maps = []
        for network in (baseline.network, recognizer.network):
            layer, norm = (network.get_submodule(str(path)) for path in FEEDING[name][:2])
            assert isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            (part,) = parts(layer)
            maps.append(affine(layer, norm, part)[:, seen.kept])
        return seen, maps[0], maps[1]

    @pytest.mark.parametrize("refit", [0.01, 3.0])
    @pytest.mark.parametrize("name", ["residual", "grouped"])
    def test_they_are_drawn_to_what_they_were(self, baselines: dict[str, Baseline], name: str, refit: float) -> None:
        seen, old, new = self._seen(baselines[name], name, refit=refit, rectified=0)
        (columns,) = seen.read
        rows = np.eye(len(old))[:-1] * np.sqrt(refit * np.square(columns[:, :-1]).sum(0).mean())  # all but the offset
        expected = np.linalg.lstsq(
            np.concatenate([columns, rows]), np.concatenate([seen.targets.numpy(), rows @ old.numpy()]), rcond=None
        )[0]
        scale = float(old.abs().max())
        assert np.abs(expected - old.numpy()).max() > 1e-3 * scale
        torch.testing.assert_close(new, torch.from_numpy(expected), rtol=1e-3, atol=1e-3 * scale)

    @pytest.mark.parametrize("name", FEEDING)
    def test_on_demand_they_stay(self, baselines: dict[str, Baseline], name: str) -> None:
        _, old, new = self._seen(baselines[name], name, refit=None)
        assert torch.equal(old, new)

    def test_what_is_before_all_removed_units_stays(self, baselines: dict[str, Baseline]) -> None:
        _, old, new = self._seen(baselines["chain"], "chain", rectified=0)
        torch.testing.assert_close(old, new, rtol=1e-3, atol=1e-3)

    def test_rectified_they_do_better_behind_their_relu(self, baselines: dict[str, Baseline]) -> None:
        errors = []
        for rectified in (0, 5):
            seen, _, _ = self._seen(baselines["residual"], "residual", refit=0.0, rectified=rectified)
            errors.append(float((seen.outputs.relu() - seen.targets.relu()).square().sum()))
        assert errors[1] < 0.98 * errors[0]


def _error(recognizer: Recognizer) -> float:
    """Squared error of the logits on the calibration images."""
    images = recognizer.baseline.calibration(IMAGES)
    with torch.no_grad():
        difference = recognizer.compact()(images) - recognizer.baseline.network(images)
    return float(difference.square().sum(1).mean())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_asymmetric_form_reaches_the_least_error(baselines: dict[str, Baseline], name: str) -> None:
    baseline = baselines[name]
    others = [NoRecovery(), BatchNormRecovery(images=IMAGES), _recovery("symmetric"), _recovery("independent")]
    for seed in range(3):
        mask = _thinned(baseline.table, seed)
        asymmetric = _error(_pruned(baseline, _recovery("asymmetric"), mask))
        errors = [_error(_pruned(baseline, recovery, mask)) for recovery in others]
        assert asymmetric < min(errors)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_form_makes_up_for_much_of_a_light_pruning(baselines: dict[str, Baseline], name: str) -> None:
    baseline = baselines[name]
    mask = np.ones(baseline.table.n_units, dtype=np.int8)
    mask[[layer.start for layer in baseline.table.layers]] = 0
    untreated = _error(_pruned(baseline, NoRecovery(), mask))
    for form in (*FORMS, "unify"):
        assert _error(_pruned(baseline, _recovery(form), mask)) < 0.8 * untreated
