"""Whatever is kept, put off, shared or fused: every figure is that of a recognizer that does none of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import odd_networks
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import Reference, few, random_units
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from recognizers.baseline import Baseline
from recognizers.compaction import compact
from recognizers.data import Normalization, Splits
from recognizers.evaluation import accuracy, predict
from recognizers.execution import engine as engine_module
from recognizers.recognizer import Recognizer, Snapshot
from recognizers.recovery import BatchNormRecovery, FinetuneRecovery, NoRecovery, Recovery, recalibrate

RECOVERIES: dict[str, Recovery] = {
    "none": NoRecovery(),
    "bn": BatchNormRecovery(images=20, batch_size=8),
    "finetune": FinetuneRecovery(steps=2, images=20, batch_size=8, learning_rate=0.05, padding=1),
}
MakeBaseline = Callable[..., Baseline]


@pytest.fixture(scope="module")
def make_baseline(digits: tuple[Splits, Normalization], enliven: Callable[..., nn.Module]) -> MakeBaseline:
    """A baseline of 40 images in batches of 20, around a network whose statistics mean something."""
    splits, normalization = digits
    part = few(splits, 40)

    def make(build: Callable[[], nn.Module], **arguments: Any) -> Baseline:
        torch.manual_seed(0)
        network = enliven(build(), normalization.normalize(part.train.images))
        return Baseline(network, part, normalization, device=torch.device("cpu"), **{"batch_size": 20, **arguments})

    return make


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _assert_close(logits: Tensor, expected: Tensor, tolerance: float = 1e-3) -> None:
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def _assert_same_values(one: nn.Module, other: nn.Module, tolerance: float = 0.0, of_weights: float = 0.0) -> None:
    """The same weights, to the bit unless ``of_weights`` says otherwise, and running statistics within a tolerance."""
    values, learned = other.state_dict(), dict(one.named_parameters())
    assert list(one.state_dict()) == list(values)
    for name, value in one.state_dict().items():
        close = of_weights if name in learned else tolerance
        torch.testing.assert_close(
            value, values[name], rtol=close, atol=close, msg=lambda text, name=name: f"{name}: {text}"
        )


@dataclass
class Trio:
    """A recognizer, one that starts each figure from scratch, and the reference; all do the same."""

    subject: Recognizer
    scratch: Recognizer
    reference: Reference
    tolerance: float = 1e-3
    weights_tolerance: float = 0.0
    snapshots: list[tuple[Snapshot, Snapshot, Reference]] = field(default_factory=list)

    def do(self, kind: str, seed: int) -> None:
        getattr(self, f"do_{kind}")(seed)
        assert np.array_equal(self.subject.mask, self.reference.mask)

    def do_zero_out(self, seed: int) -> None:
        units = self._units(seed)
        for one in (self.subject, self.scratch, self.reference):
            one.zero_out(units)

    def do_recover(self, seed: int) -> None:
        for one in (self.subject, self.scratch, self.reference):
            one.recover(_generator(seed))

    def do_step(self, seed: int) -> None:
        self.do_zero_out(seed)
        self.do_recover(seed)
        self.do_accuracy(seed)

    def do_accuracy(self, seed: int) -> None:
        self.scratch.forget()
        figure = self.subject.accuracy()
        assert figure == self.scratch.accuracy()
        assert figure == accuracy(self.scratch.logits(), self.scratch.splits.reward.labels)

    def do_logits(self, seed: int) -> None:
        self.scratch.forget()
        logits = self.subject.logits()
        assert torch.equal(logits, self.scratch.logits())
        _assert_close(logits, self.reference.logits(), self.tolerance)

    def do_test_accuracy(self, seed: int) -> None:
        assert self.subject.accuracy("test") == self.reference.accuracy("test")

    def do_values(self, seed: int) -> None:
        _assert_same_values(self.subject.compact(), self.scratch.compact())
        _assert_same_values(self.subject.compact(), self.reference.network(), self.tolerance, self.weights_tolerance)

    def do_network(self, seed: int) -> None:
        """The dense network with ZeroOut layers means the same."""
        images, normalization = self.subject.splits.reward.images, self.subject.normalization
        logits = predict(self.subject.network, images, normalization, precision="float32")
        _assert_close(self.subject.logits(), logits, self.tolerance)

    def do_probe(self, seed: int) -> None:
        selections = [self._units(seed + index) for index in range(seed % 4)]
        selections += selections[:1]
        generator = _generator(seed)
        figures = self.subject.probe(selections, generator)
        assert torch.equal(generator.get_state(), _generator(seed).get_state())
        assert figures == [self._figure(units, seed) for units in selections]

    def do_reset(self, seed: int) -> None:
        self.subject.reset()
        self.scratch.reset()
        self.reference = Reference.of(self.reference.baseline, self.reference.recovery)

    def do_load_mask(self, seed: int) -> None:
        self.do_reset(seed)
        units = random_units(self.subject.table, self.subject.mask, np.random.default_rng(seed), most=8)
        self.reference.zero_out(units)
        self.reference.recover(_generator(seed))
        for one in (self.subject, self.scratch):
            one.load_mask(self.reference.mask, _generator(seed))

    def do_snapshot(self, seed: int) -> None:
        self.snapshots.append((self.subject.snapshot(), self.scratch.snapshot(), self.reference.copy()))

    def do_restore(self, seed: int) -> None:
        if self.snapshots:
            ours, others, reference = self.snapshots[seed % len(self.snapshots)]
            self.subject.restore(ours)
            self.scratch.restore(others)
            self.reference = reference.copy()

    def do_forget(self, seed: int) -> None:
        self.subject.forget()

    def do_baseline_accuracy(self, seed: int) -> None:
        self.subject.baseline.accuracies.clear()
        complete = Reference.of(self.reference.baseline, self.reference.recovery)
        assert self.subject.baseline_accuracy("test") == complete.accuracy("test")

    def _units(self, seed: int) -> np.ndarray:
        return random_units(self.subject.table, self.subject.mask, np.random.default_rng(seed))

    def _figure(self, units: np.ndarray, seed: int) -> float:
        before = self.scratch.snapshot()
        self.scratch.zero_out(units)
        self.scratch.recover(_generator(seed))
        self.scratch.forget()
        figure = self.scratch.accuracy()
        self.scratch.restore(before)
        return figure


KINDS = sorted(name.removeprefix("do_") for name in vars(Trio) if name.startswith("do_"))
OPERATIONS = st.lists(st.tuples(st.sampled_from([*KINDS, "step", "step", "probe"]), st.integers(0, 999)), max_size=10)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "chain": odd_networks.Odd,
    "residual": odd_networks.Residual,
}


class TestSequences:
    @pytest.fixture(scope="class", params=NETWORKS)
    def baselines(self, request: pytest.FixtureRequest, make_baseline: MakeBaseline) -> list[Baseline]:
        """Three of the same network, so that a recognizer that writes to its base weights is found out."""
        return [make_baseline(NETWORKS[request.param]) for _ in range(3)]

    @pytest.mark.parametrize("kind", RECOVERIES)
    @given(OPERATIONS, st.sampled_from([0, 1, 1024]))
    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_every_figure_is_that_of_the_reference(
        self, baselines: list[Baseline], kind: str, operations: list[tuple[str, int]], megabytes: int
    ) -> None:
        recovery = RECOVERIES[kind]
        baselines[0].forget()
        trio = Trio(
            Recognizer(baselines[0], recovery=recovery, cache_megabytes=megabytes),
            Recognizer(baselines[1], recovery=recovery, cache_megabytes=0),
            Reference.of(baselines[2], recovery),
        )
        for name, seed in [*operations, ("accuracy", 0), ("logits", 0), ("values", 0), ("network", 0)]:
            trio.do(name, seed)
        _assert_same_values(baselines[0].network, baselines[2].network)

    @pytest.mark.parametrize("kind", RECOVERIES)
    def test_in_bfloat16(self, make_baseline: MakeBaseline, kind: str) -> None:
        baselines = [make_baseline(NETWORKS["chain"], precision="bfloat16") for _ in range(3)]
        trio = Trio(
            Recognizer(baselines[0], recovery=RECOVERIES[kind]),
            Recognizer(baselines[1], recovery=RECOVERIES[kind], cache_megabytes=0),
            Reference.of(baselines[2], RECOVERIES[kind]),
            tolerance=0.05,
            # The engine trains in pairs of images, whose gradients are summed in another order.
            weights_tolerance=0.01 if kind == "finetune" else 0.0,
        )
        for name in (
            "logits",
            "step",
            "probe",
            "step",
            "snapshot",
            "zero_out",
            "logits",
            "restore",
            "values",
            "network",
        ):
            trio.do(name, 3)
        assert baselines[0].dtype == torch.bfloat16

    @pytest.mark.parametrize("kind", RECOVERIES)
    def test_recognizers_of_one_baseline_do_not_disturb_each_other(
        self, make_baseline: MakeBaseline, kind: str
    ) -> None:
        """They share weights, images, figures and memory, and come one after the other."""
        shared, *others = (make_baseline(NETWORKS["residual"]) for _ in range(3))
        trios: list[Trio] = []
        for newcomer in range(3):
            trios.append(
                Trio(
                    Recognizer(shared, recovery=RECOVERIES[kind], cache_megabytes=1),
                    Recognizer(others[0], recovery=RECOVERIES[kind], cache_megabytes=0),
                    Reference.of(others[1], RECOVERIES[kind]),
                )
            )
            for name in ("step", "probe", "zero_out", "logits", "step", "values"):
                for index, trio in enumerate(trios):
                    trio.do(name, 10 * newcomer + index)


TRAINABLE = {**odd_networks.UNCUT, **odd_networks.CUT, **odd_networks.OTHERS}
ODD = {**TRAINABLE, **odd_networks.UNTRAINABLE}


class TestOddNetworks:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [(name, kind) for name in ODD for kind in RECOVERIES if kind != "finetune" or name in TRAINABLE],
    )
    def test_they_are_measured_rightly(self, make_baseline: MakeBaseline, name: str, kind: str) -> None:
        baselines = [make_baseline(ODD[name]) for _ in range(3)]
        assert baselines[0].table.n_units > 0, "nothing would be tested"
        trio = Trio(
            Recognizer(baselines[0], recovery=RECOVERIES[kind]),
            Recognizer(baselines[1], recovery=RECOVERIES[kind], cache_megabytes=0),
            Reference.of(baselines[2], RECOVERIES[kind]),
        )
        first = ("logits", "step", "logits", "probe", "snapshot", "step", "logits", "values")
        then = ("restore", "logits", "reset", "logits", "load_mask", "logits", "network")
        for seed, operation in enumerate((*first, *then)):
            trio.do(operation, seed)

    def test_a_network_without_units(self, make_baseline: MakeBaseline) -> None:
        baseline = make_baseline(lambda: nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
        recognizer = Recognizer(baseline, recovery=RECOVERIES["bn"])
        recognizer.recover()
        images, normalization = recognizer.splits.reward.images, recognizer.normalization
        _assert_close(recognizer.logits(), predict(baseline.network, images, normalization, precision="float32"))
        assert recognizer.probe([np.array([], dtype=np.int64)]) == [recognizer.accuracy()]


class TestTraining:
    """What a recovery trains: the network, or in bfloat16 stages that take images in pairs."""

    @pytest.fixture(autouse=True)
    def _vectors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine_module, "lanes", lambda dtype: 16)

    @pytest.mark.parametrize(
        ("network", "precision", "by_stages"),
        [("chain", "bfloat16", True), ("chain", "float32", False), ("data dependent", "bfloat16", False)],
    )
    def test_what_is_trained(self, make_baseline: MakeBaseline, network: str, precision: str, by_stages: bool) -> None:
        build = {**NETWORKS, "data dependent": odd_networks.DataDependent}[network]
        recognizer = Recognizer(make_baseline(build, precision=precision))
        engine = recognizer._engine
        assert (engine.chain != [engine.network]) == by_stages
        recognizer.zero_out(random_units(recognizer.table, recognizer.mask, np.random.default_rng(0)))
        parameters = {id(parameter) for module in engine.chain for parameter in module.parameters()}
        assert by_stages or parameters == {id(parameter) for parameter in engine.network.parameters()}

    @pytest.mark.parametrize("lanes", [16, 1])
    def test_stages_train_the_weights_that_a_mask_leaves(
        self, make_baseline: MakeBaseline, monkeypatch: pytest.MonkeyPatch, lanes: int
    ) -> None:
        monkeypatch.setattr(engine_module, "lanes", lambda dtype: lanes)
        recognizer = Recognizer(
            make_baseline(NETWORKS["residual"], precision="bfloat16"), recovery=RECOVERIES["finetune"]
        )
        for seed in range(2):
            recognizer.zero_out(random_units(recognizer.table, recognizer.mask, np.random.default_rng(seed)))
            recognizer.logits()  # slicing is put off until it is needed
            before = {name: value.detach().clone() for name, value in recognizer._engine.network.named_parameters()}
            recognizer.recover(_generator(seed))
            for name, value in recognizer._engine.network.named_parameters():
                assert value.shape == before[name].shape
                assert not torch.equal(value, before[name]), name


class Counting(TorchFunctionMode):
    """Counts calls of functions by name; at the ``stop``-th call, it raises."""

    def __init__(self, *names: str, stop: int | None = None) -> None:
        super().__init__()
        self.names, self.stop, self.calls = names, stop, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.names:
            self.calls += 1
            if self.calls == self.stop:
                raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


class TestRecalibration:
    @pytest.fixture
    def recognizer(self, make_baseline: MakeBaseline) -> Recognizer:
        return Recognizer(make_baseline(NETWORKS["residual"]), recovery=RECOVERIES["bn"])

    def _assert_recalibrated(self, recognizer: Recognizer) -> None:
        baseline = recognizer.baseline
        expected = compact(baseline.network, baseline.table, recognizer.mask)
        recalibrate(expected, baseline.calibration(20), 8, "float32")
        _assert_same_values(recognizer.compact(), expected, tolerance=1e-6)

    def test_from_scratch(self, recognizer: Recognizer) -> None:
        recognizer.load_mask(recognizer.mask)
        self._assert_recalibrated(recognizer)

    @pytest.mark.parametrize("last", [True, False])
    def test_from_where_something_changed(self, recognizer: Recognizer, last: bool) -> None:
        """Of a change within the last block, the work is that of the last block."""
        recognizer.load_mask(recognizer.mask)
        recognizer.compact()
        layers = recognizer.table.layers
        with Counting("batch_norm_update_stats") as counting:
            recognizer.zero_out(layers[-1 if last else 0].units[1:2])
            recognizer.recover()
            recognizer.compact()
        norms = sum(isinstance(module, nn.BatchNorm2d) for module in recognizer.baseline.network.modules())
        batches = 2
        assert counting.calls == batches * (3 if last else norms)
        self._assert_recalibrated(recognizer)

    def test_a_mask_that_was_recovered_already(self, recognizer: Recognizer) -> None:
        recognizer.zero_out(np.array([0]))
        recognizer.recover()
        recognizer.compact()
        with Counting("batch_norm_update_stats") as counting:
            recognizer.recover()
            recognizer.compact()
        assert counting.calls == 0


class TestMemory:
    @pytest.mark.parametrize("megabytes", [0, 1, 2])
    @pytest.mark.parametrize("kind", RECOVERIES)
    def test_stays_within_the_setting(self, make_baseline: MakeBaseline, kind: str, megabytes: int) -> None:
        baseline = make_baseline(lambda: odd_networks.Residual(width=40))
        recognizer = Recognizer(baseline, recovery=RECOVERIES[kind], cache_megabytes=megabytes)
        logits = recognizer.logits().nbytes  # those are kept in any case
        generator = np.random.default_rng(0)
        sizes = []
        for _ in range(3):
            recognizer.probe([random_units(recognizer.table, recognizer.mask, generator) for _ in range(3)])
            recognizer.zero_out(random_units(recognizer.table, recognizer.mask, generator))
            recognizer.recover()
            recognizer.logits()
            sizes.append(recognizer.cached_bytes - logits)
        assert max(sizes) <= megabytes * 2**20
        if kind == "finetune":
            assert max(sizes) == 0, "all weights change at every step, so nothing could be used again"
        elif megabytes > 0:
            assert min(sizes) > 0.5 * megabytes * 2**20, "what may be used is used"

    def test_recognizers_of_a_baseline_share_it(self, make_baseline: MakeBaseline) -> None:
        baseline = make_baseline(NETWORKS["residual"])  # alone, a recognizer could use more than a megabyte

        def together(recognizers: list[Recognizer]) -> int:
            """Size of what they all keep, but for the logits, after each has learnt of the others."""
            size = 0
            for recognizer in [*recognizers, *recognizers]:
                recognizer.zero_out(np.flatnonzero(recognizer.mask)[:1])
                recognizer.recover()
                size -= recognizer.logits().nbytes // 2
            return size + sum(recognizer.cached_bytes for recognizer in recognizers)

        recognizers = [Recognizer(baseline, recovery=RECOVERIES["bn"], cache_megabytes=1) for _ in range(3)]
        three = together(recognizers)
        del recognizers[1:]
        assert len(baseline.engines) == 1, "those that are gone leave their share"
        alone = together(recognizers)
        assert 0 < three <= 2**20
        assert 2**20 / 3 < alone <= 2**20

    def test_forget_frees_it(self, make_baseline: MakeBaseline) -> None:
        recognizer = Recognizer(make_baseline(NETWORKS["chain"]), recovery=RECOVERIES["bn"])
        recognizer.logits()
        assert recognizer.cached_bytes > 0
        recognizer.forget()
        assert recognizer.cached_bytes == 0


WORK = ("batch_norm", "conv2d", "relu", "flatten", "linear", "cross_entropy")


def _nothing(recognizer: Recognizer) -> None:
    pass


def _step(recognizer: Recognizer) -> None:
    recognizer.zero_out(np.array([0, 8]))
    recognizer.recover(_generator(0))


def _zero_out(recognizer: Recognizer) -> None:
    _step(recognizer)
    recognizer.zero_out(np.array([1]))


def _places(recognizer: Recognizer, work: Callable[[Recognizer], object]) -> list[int]:
    """Calls within ``work`` to interrupt it at."""
    with Counting(*WORK) as counting:
        work(recognizer)
    assert counting.calls > 3
    return sorted({1 + position * (counting.calls - 1) // 7 for position in range(8)})


class TestInterruptions:
    @pytest.fixture(params=RECOVERIES)
    def fresh(self, request: pytest.FixtureRequest, make_baseline: MakeBaseline) -> Callable[..., Recognizer]:
        """A recognizer that remembers nothing, after some preparation."""
        baseline = make_baseline(NETWORKS["chain"])

        def make(prepare: Callable[[Recognizer], None]) -> Recognizer:
            baseline.forget()
            recognizer = Recognizer(baseline, recovery=RECOVERIES[request.param])
            prepare(recognizer)
            return recognizer

        return make

    @pytest.mark.parametrize("prepare", [_nothing, _step, _zero_out])
    def test_an_interrupted_probe_leaves_no_trace(
        self, fresh: Callable[..., Recognizer], prepare: Callable[[Recognizer], None]
    ) -> None:
        selections = [np.array([2]), np.array([3, 10]), np.array([11])]
        expected = fresh(prepare)
        logits, values, figures = expected.logits(), expected.compact(), expected.probe(selections, _generator(5))
        for stop in _places(fresh(prepare), lambda recognizer: recognizer.probe(selections, _generator(5))):
            recognizer, generator = fresh(prepare), _generator(5)
            with pytest.raises(KeyboardInterrupt), Counting(*WORK, stop=stop):
                recognizer.probe(selections, generator)
            assert np.array_equal(recognizer.mask, expected.mask)
            assert torch.equal(generator.get_state(), _generator(5).get_state())
            assert torch.equal(recognizer.logits(), logits)
            _assert_same_values(recognizer.compact(), values)
            assert recognizer.probe(selections, generator) == figures

    @pytest.mark.parametrize("back", ["reset", "restore"])
    def test_there_is_a_way_back_from_an_interrupted_step(self, fresh: Callable[..., Recognizer], back: str) -> None:
        prepare = _nothing if back == "reset" else _step
        expected = fresh(prepare)
        logits, values = expected.logits(), expected.compact()

        def step(recognizer: Recognizer) -> None:
            recognizer.zero_out(np.array([3, 11]))
            recognizer.recover(_generator(1))
            recognizer.accuracy()

        for stop in _places(fresh(prepare), step):
            recognizer = fresh(prepare)
            snapshot = recognizer.snapshot()
            with pytest.raises(KeyboardInterrupt), Counting(*WORK, stop=stop):
                step(recognizer)
            recognizer.reset() if back == "reset" else recognizer.restore(snapshot)
            assert torch.equal(recognizer.logits(), logits)
            _assert_same_values(recognizer.compact(), values)

    def test_interrupted_while_measuring_the_baseline(self, fresh: Callable[..., Recognizer]) -> None:
        recognizer = fresh(_step)
        mask, values = recognizer.mask, recognizer.compact()
        with pytest.raises(KeyboardInterrupt), Counting(*WORK, stop=1):
            recognizer.baseline_accuracy("test")
        assert np.array_equal(recognizer.mask, mask)
        _assert_same_values(recognizer.compact(), values)
