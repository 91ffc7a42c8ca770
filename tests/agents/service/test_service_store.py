"""The record, and the supervisor that works through it: nothing is lost, whatever dies."""

import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from service_fakes import Scripted

from agents.holding import hold
from agents.service.errors import ConflictError, NotFoundError, TooManyError
from agents.service.requests import PruningRequest
from agents.service.store import ENDED, Store
from agents.service.supervisor import ATTEMPTS, Supervisor
from agents.service.work import RESULT, Outcome, Work, without_paths
from recognizers.errors import ConfigurationError
from recognizers.files import write_text

REQUEST = PruningRequest(task="digits/convnet", policy="random").model_dump_json()


class Bench:
    """A store, and supervisors that follow each other on it."""

    def __init__(self, root: Path, workers: int = 2) -> None:
        self.root, self.workers = root, workers
        self.store = Store(root / "service.sqlite")
        self.again()

    def again(self) -> None:
        """What a new service does after the old one was killed."""
        self.executor = Scripted()
        self.supervisor = Supervisor(self.store, self.executor, self._plan, workers=self.workers)
        self.supervisor.recover()

    def _plan(self, job) -> Work:
        request = PruningRequest.model_validate_json(job.request)
        return Work(job.id, request, self.root / job.id, None, None, 60.0, self.root)

    def add(self, id_: str) -> None:
        self.store.add(id_, "owner", REQUEST, most=100)

    def state(self, id_: str) -> str:
        return self.store.job(id_).state


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_jobs_run_in_the_order_of_their_arrival_and_so_many_at_a_time(bench: Bench) -> None:
    for id_ in "abc":
        bench.add(id_)
    bench.supervisor.step()
    assert bench.executor.started == ["a", "b"] and bench.state("c") == "queued"
    bench.executor.outcomes["b"] = Outcome(result="{}")
    bench.executor.outcomes["a"] = Outcome(failure="why")
    bench.supervisor.step()
    assert bench.executor.started == ["a", "b", "c"]
    assert bench.store.job("b").result == "{}" and bench.store.job("a").failure == "why"


def test_a_dying_process_is_begun_again_but_not_for_ever(bench: Bench) -> None:
    bench.add("a")
    for attempt in range(1, ATTEMPTS + 1):
        bench.supervisor.step()
        assert (bench.state("a"), bench.store.job("a").attempts) == ("running", attempt)
        bench.executor.ended.append("a")
        bench.supervisor._watch("a", bench.supervisor._running["a"])
    assert bench.state("a") == "failed" and "died 3 times" in (bench.store.job("a").failure or "")


def test_what_was_finished_while_nobody_looked_is_found(bench: Bench) -> None:
    for id_ in "ab":
        bench.add(id_)
    bench.supervisor.step()
    write_text(bench.root / "a" / RESULT, '{"x": 1}')
    bench.again()
    assert bench.store.job("a").result == '{"x": 1}' and bench.state("b") == "queued"


def test_cancelling(bench: Bench) -> None:
    bench.add("a")
    bench.add("b")
    bench.supervisor.step()
    assert bench.store.cancel("a", "owner").state == "cancelling"
    bench.supervisor.step()
    assert bench.executor.ended == ["a"]
    bench.supervisor.step()
    assert bench.state("a") == "cancelled"
    with pytest.raises(ConflictError, match="it is cancelled"):
        bench.store.cancel("a", "owner")
    with pytest.raises(NotFoundError):
        bench.store.cancel("b", "somebody")


def test_an_owner_has_so_many_at_a_time(bench: Bench) -> None:
    bench.store.add("a", "owner", REQUEST, most=1)
    with pytest.raises(TooManyError, match="wait or cancel"):
        bench.store.add("b", "owner", REQUEST, most=1)
    bench.store.add("c", "another", REQUEST, most=1)
    with pytest.raises(NotFoundError):
        bench.store.job("b")


def _die(root: Path, ready) -> None:
    bench = Bench(root, workers=20)
    for number in range(20):
        bench.add(f"{number:02d}")
    bench.supervisor.step()
    for number in range(0, 20, 4):
        bench.executor.outcomes[f"{number:02d}"] = Outcome(result=f'{{"n": {number}}}')
    bench.supervisor.step()
    ready.set()
    os.kill(os.getpid(), signal.SIGKILL)


def test_killing_the_service_during_twenty_jobs_loses_none_of_the_finished(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    process = fork.Process(target=_die, args=(tmp_path, ready))
    process.start()
    process.join()
    assert ready.is_set() and process.exitcode == -signal.SIGKILL
    bench = Bench(tmp_path, workers=20)
    jobs = {job.id: job for job in bench.store.jobs_of("owner", most=100)}
    assert len(jobs) == 20
    for number in range(20):
        job = jobs[f"{number:02d}"]
        assert (job.state, job.result) == (("queued", None) if number % 4 else ("finished", f'{{"n": {number}}}'))
    bench.supervisor.step()
    assert bench.executor.started == [f"{number:02d}" for number in range(20) if number % 4]


def test_two_services_do_not_share_a_directory(tmp_path: Path) -> None:
    with hold(tmp_path), pytest.raises(ConfigurationError, match="another process works in"):
        hold(tmp_path)
    hold(tmp_path).release()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("cannot read /a/b c/d.safetensors: no", "cannot read b c/d.safetensors: no"),
        ("'/root/x.npz', see https://a.b/c and digits/convnet", "'x.npz', see https://a.b/c and digits/convnet"),
        ("1/2 of (/srv/data)", "1/2 of (data)"),
    ],
)
def test_paths_are_cut(text: str, clean: str) -> None:
    assert without_paths(text) == clean


class Lives(RuleBasedStateMachine):
    """Whatever happens in whatever order: no job vanishes, an ended one stays as it is, and all can come to an end."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.bench = Bench(Path(self.folder.name))
        self.added = 0
        self.ended: dict[str, tuple[str, str | None]] = {}

    @rule()
    def add(self) -> None:
        self.bench.add(str(self.added))
        self.added += 1

    @rule()
    def step(self) -> None:
        self.bench.supervisor.step()

    @rule(number=st.integers(0, 9), kind=st.sampled_from(["result", "failure", "death"]))
    def end(self, number: int, kind: str) -> None:
        executor, id_ = self.bench.executor, str(number)
        if executor.outcomes.get(id_, 1) is None:
            if kind == "death":
                executor.ended.append(id_)
            else:
                executor.outcomes[id_] = Outcome(**{kind: "{}"})

    @rule(number=st.integers(0, 9))
    def cancel(self, number: int) -> None:
        if number < self.added and self.bench.state(str(number)) not in ENDED:
            self.bench.store.cancel(str(number), "owner")

    @rule()
    def kill(self) -> None:
        self.bench.again()

    @invariant()
    def nothing_is_lost(self) -> None:
        jobs = self.bench.store.jobs_of("owner", most=1000)
        assert len(jobs) == self.added
        for job in jobs:
            assert job.attempts <= ATTEMPTS
            if job.id in self.ended:
                assert self.ended[job.id] == (job.state, job.result)
            if job.state in ENDED:
                self.ended[job.id] = job.state, job.result
                assert (job.state == "finished") == (job.result is not None)

    def teardown(self) -> None:
        for _ in range(3 * self.added + 3):
            self.bench.supervisor.step()
            for id_, outcome in self.bench.executor.outcomes.items():
                self.bench.executor.outcomes[id_] = outcome or Outcome(result="{}")
        assert all(job.state in ENDED for job in self.bench.store.jobs_of("owner", most=1000))
        self.bench.store.close()
        self.folder.cleanup()


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
