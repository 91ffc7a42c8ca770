"""Running a benchmark: what is not finished yet, in this process or as Ray tasks."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from agents.benchmark.config import TRAIN, BenchmarkConfig, Entry, Key, slug, table_path
from agents.benchmark.job import Base, Job, out_of_time, perform
from agents.benchmark.rows import Row
from agents.cluster import gpu_share, start_ray
from agents.object_store import Contents, pack, unpack
from agents.policy import check_policy
from agents.workbench import keep_latency_table
from envs.tasks import TaskConfig
from recognizers.errors import ConfigurationError, ZeroOutError, in_one_line
from recognizers.preparation import FilterReplacement
from recognizers.sharing import fingerprint, shared

if TYPE_CHECKING:
    from agents.r2d2.settings import R2D2Settings

ATTEMPTS = 3
"""How often a run is started whose worker process dies."""
GRACE = 30.0
"""Seconds beyond its limit after which a run that does not stop by itself is ended with its process."""


def plan(config: BenchmarkConfig, directory: Path, finished: Sequence[Row]) -> list[Job]:
    """The runs that have no result yet, in order.

    Raises:
        ConfigurationError: an unknown policy, settings that a task or a controller does not have, or a controller that
            is to act where it cannot.
        FileError: a latency table cannot be read, or not be copied into the directory.
    """
    done = {row.key for row in finished if row.result is not None}
    for entry in config.policies:
        check_policy(entry.policy)
    controllers = {entry.name: _controller(entry) for entry in config.policies}
    jobs = []
    for key in config.runs():
        if key in done:
            continue
        task = keep_latency_table(config.settings(key), table_path(directory, key))
        base = _base(key, task, directory / "bases")
        entry, run = config.entry(key.label), _run_directory(directory, key)
        trainer = _trainer(key, entry)
        if trainer is not None:
            _check_carried(key, task, trainer, config.settings(trainer), controllers[trainer.label])
        policy = entry.policy if trainer is None else f"{TRAIN}:{_run_directory(directory, trainer)}"
        jobs.append(Job(key, entry, policy, task, base, run, config.time_limit, controllers[key.label]))
    return jobs


def _run_directory(directory: Path, key: Key) -> Path:
    return (directory / "runs" / slug(key.task) / slug(key.label) / f"seed-{key.seed}").absolute()


def _controller(entry: Entry) -> "R2D2Settings | None":
    if not entry.trains:
        return None
    # RLlib takes seconds to import, and most benchmarks do without it.
    from agents.controller import load_controller  # noqa: PLC0415

    return load_controller(entry.controller, entry.overrides)


def _check_carried(
    key: Key, task: TaskConfig, trainer: Key, trained_on: TaskConfig, controller: "R2D2Settings | None"
) -> None:
    if controller is None or controller.network.transferable or _actions(task) == _actions(trained_on):
        return
    raise ConfigurationError(
        f"{key.label}: {trainer.label} knows the actions of {trainer.task} alone, and those of {key.task} are "
        "others: train it with network.head=unit and network.action_embedding=false"
    )


def _actions(task: TaskConfig) -> tuple[object, ...]:
    """What decides which actions there are."""
    return task.recognizer.architecture, task.recognizer.arguments, task.recognizer.preparation, task.actions


def run_benchmark(
    config: BenchmarkConfig,
    directory: Path,
    finished: Sequence[Row],
    *,
    workers: int | None = 0,
    address: str | None = None,
    progress: bool = False,
) -> Iterator[Row]:
    """Run what has no result yet; yields each row as soon as it is there.

    Every run leaves its run directory under ``directory``; base networks are in ``bases/``. Rows are equal, seconds
    apart, in whatever process a run takes place, as long as the task sets ``recognizer.threads``.

    Args:
        config: of the benchmark.
        directory: where files go; all machines of a cluster must see it.
        finished: rows of earlier calls; failed runs are tried again.
        workers: how many runs at a time, in processes of their own; 0: one after the other in this process, where a
            crash or a loop inside a C extension ends or halts the whole benchmark; None: as the machines allow.
        address: of a Ray cluster; this machine by default.
        progress: show progress bars within runs in this process.

    Raises:
        ConfigurationError: the benchmark asks for what does not exist.
    """
    jobs = plan(config, directory, finished)
    spent = {row.key: row.result.evaluations for row in finished if row.result is not None}
    if workers == 0:
        return _in_process(jobs, spent, progress=progress)
    return _Driver(jobs, spent, workers, address).rows()


def _base(key: Key, task: TaskConfig, directory: Path) -> Base:
    """The base network of a run; one whose filters were replaced starts from the one that all others share."""
    source = None
    if isinstance(task.recognizer.preparation, FilterReplacement) and task.recognizer.weights is None:
        plain = task.recognizer.model_copy(update={"preparation": None})
        source = _base(key, task.model_copy(update={"recognizer": plain}), directory)
    # Bases are shared by tasks that count latency by different tables.
    bare = task.model_copy(update={"recognizer": task.recognizer.model_copy(update={"latency_table": None})})
    return Base(bare, directory / _base_name(key, task), source)


def _base_name(key: Key, task: TaskConfig) -> str:
    """A name for the base network; equal for runs that start from the same one."""
    same = {"finetuning", "cache_megabytes", "latency_table"}
    settings = [task.recognizer.model_dump(exclude=same), task.data.model_dump()]
    return f"{slug(task.name)}-seed-{key.seed}-{fingerprint(settings, [])[:8]}"


def _trainer(key: Key, entry: Entry) -> Key | None:
    """The run that trains the controller with which another run acts."""
    training = entry.trained_by
    return None if training is None else key._replace(label=training.policy, task=training.task)


def _followed(job: Job) -> Key | None:
    """The run that a run has to wait for: a search whose evaluations it spends, or its controller's training."""
    label = job.entry.equal_evaluations_to
    return _trainer(job.key, job.entry) if label is None else job.key._replace(label=label)


def _after(job: Job, evaluations: int) -> Job:
    """A job as it is once the run that it waits for has spent so many evaluations."""
    return job if job.entry.equal_evaluations_to is None else replace(job, settings={"evaluations": evaluations})


def _base_failed(error: BaseException) -> str:
    return f"the base network: {in_one_line(error)}"


def _in_process(jobs: Sequence[Job], spent: dict[Key, int], *, progress: bool) -> Iterator[Row]:
    opened: tuple[Path, Any] | None = None
    for job in jobs:
        if (followed := _followed(job)) is not None:
            if followed not in spent:
                yield job.failed(f"waits for {followed}, which failed")
                continue
            job = _after(job, spent[followed])  # noqa: PLW2901
        try:
            if opened is None or opened[0] != job.base.directory:
                opened = job.base.directory, job.base.open(progress=progress)
        except ZeroOutError as error:
            yield job.failed(_base_failed(error))
            continue
        row = perform(job, opened[1].baseline, progress=progress)
        if row.result is not None:
            spent[row.key] = row.result.evaluations
        yield row


class _Driver:
    """Hands runs to Ray as workers become free, and ends those that take too long.

    Args:
        jobs: in order.
        spent: evaluations of the runs that are finished already.
        workers: how many at a time; None: as the machines allow.
        address: of a Ray cluster.
    """

    def __init__(self, jobs: Sequence[Job], spent: dict[Key, int], workers: int | None, address: str | None) -> None:
        self._waiting, self._spent = list(jobs), spent
        start_ray(address)
        resources = ray.cluster_resources()
        cpus, gpus = int(resources.get("CPU", 1)), resources.get("GPU", 0)
        default = min(cpus, int(2 * gpus)) if gpus else cpus
        self._workers = workers or max(default, 1)
        # A controller that trains with runners reserves no core itself: they do.
        share = gpu_share(self._workers)
        again = {"max_retries": ATTEMPTS - 1, "retry_exceptions": False}
        self._open = ray.remote(num_cpus=1, **share, **again)(_open)
        self._perform = ray.remote(num_cpus=1, **share, **again)(_perform)
        self._spread = ray.remote(num_cpus=0, **share, **again)(_perform)
        self._starts = _starts_class().options(num_cpus=0).remote()
        self._bases: dict[Path, Any] = {}  # references to contents, from when they are asked for
        self._ready: dict[Path, str | None] = {}  # None, or why there are none
        self._running: dict[Any, Job] = {}
        self._began: dict[Key, tuple[int, float]] = {}
        self._ended: dict[Any, str] = {}

    def rows(self) -> Iterator[Row]:
        """Run all."""
        try:
            while self._waiting or self._running:
                yield from self._start()
                pending = [*self._running, *(self._bases[path] for path in self._bases if path not in self._ready)]
                finished, _ = ray.wait(pending, num_returns=1, timeout=1.0) if pending else ([], [])
                for reference in finished:
                    if reference in self._running:
                        yield self._take(reference)
                    else:
                        self._take_base(reference)
                self._end_overdue()
        finally:
            for reference in self._running:
                ray.cancel(reference, force=True)
            ray.kill(self._starts)

    def _start(self) -> Iterator[Row]:
        """Hand out what can run now; yields the rows of runs that cannot run at all."""
        for job in list(self._waiting):
            followed = _followed(job)
            fault = self._ready.get(job.base.directory)
            if followed is not None and not self._comes(followed):
                fault = f"waits for {followed}, which failed"
            if fault is not None:
                self._waiting.remove(job)
                yield job.failed(fault)
                continue
            if job.base.directory not in self._bases:
                if self._free() >= 1:
                    self._open_base(job.base, job.home)
                continue
            if job.base.directory not in self._ready or (followed is not None and followed not in self._spent):
                continue
            if self._free() < self._slots(job):
                break  # those behind it must not take its place for ever
            self._waiting.remove(job)
            given = job if followed is None else _after(job, self._spent[followed])
            task = self._spread if job.spreads else self._perform
            self._running[task.remote(given, self._bases[job.base.directory], self._starts)] = job
        for path in self._ready.keys() - {job.base.directory for job in self._waiting}:
            self._bases[path] = None  # Ray keeps it for those that run now, and no longer

    def _open_base(self, base: Base, home: Path) -> None:
        """Open a base, and before it the one that it starts from: a second one must not train that, too."""
        source = base.source
        if source is not None and source.directory not in self._bases:
            self._open_base(source, home)
        before = None if source is None else self._bases[source.directory]
        self._bases[base.directory] = self._open.remote(base, home, before)

    def _comes(self, key: Key) -> bool:
        """Whether a run is finished, or may still come."""
        return key in self._spent or any(job.key == key for job in [*self._waiting, *self._running.values()])

    def _free(self) -> int:
        training = sum(path not in self._ready for path in self._bases)
        return self._workers - training - sum(self._slots(job) for job in self._running.values())

    def _slots(self, job: Job) -> int:
        """Workers that a run takes; a controller with runners or learners of its own fills the machine with them."""
        return self._workers if job.spreads else 1

    def _take(self, reference: Any) -> Row:
        job = self._running.pop(reference)
        try:
            row: Row = ray.get(reference)
        except ray.exceptions.RayError as error:
            reason = self._ended.pop(reference, None)
            row = job.failed(reason or f"its process died {ATTEMPTS} times: {in_one_line(error, 300)}")
        self._began.pop(job.key, None)
        if row.result is not None:
            self._spent[row.key] = row.result.evaluations
        return row

    def _take_base(self, reference: Any) -> None:
        path = next(path for path, known in self._bases.items() if known == reference)
        try:
            ray.get(reference)
            self._ready[path] = None
        except ray.exceptions.RayTaskError as error:
            self._ready[path] = _base_failed(error.cause)
        except ray.exceptions.RayError as error:
            self._ready[path] = _base_failed(error)

    def _end_overdue(self) -> None:
        """End the processes of runs that did not stop at their limit, or die again and again."""
        now = time.monotonic()
        for key, attempts in ray.get(self._starts.attempts.remote()).items():
            if key not in self._began or self._began[key][0] != attempts:
                self._began[key] = attempts, now
        for reference, job in self._running.items():
            attempts, began = self._began.get(job.key, (0, now))
            if reference in self._ended or (now < began + job.seconds + GRACE and attempts <= ATTEMPTS):
                continue
            self._ended[reference] = (
                out_of_time(job.seconds) + "; its process was ended"
                if attempts <= ATTEMPTS
                else f"its process died {ATTEMPTS} times, for lack of memory"
            )
            ray.cancel(reference, force=True)


def _starts_class() -> Any:
    # Local, so that Ray ships the class itself: its process would else import this module, and PyTorch with it.
    class Starts:
        """Knows how often each run was begun: waiting for a free core does not count as its time."""

        def __init__(self) -> None:
            self._attempts: dict[Any, int] = {}

        def begin(self, key: Any) -> None:
            self._attempts[key] = self._attempts.get(key, 0) + 1

        def attempts(self) -> dict[Any, int]:
            return self._attempts

    return ray.remote(Starts)


def _open(base: Base, home: Path, source: Contents | None) -> Contents:
    """Open a base network in a worker, for others; Ray waits for the one that it starts from."""
    os.chdir(home)
    return pack(base.open(progress=False))


def _perform(job: Job, contents: Contents, starts: Any) -> Row:
    """Perform a run in a worker; images and weights stay where they are in the node's object store."""
    ray.get(starts.begin.remote(tuple(job.key)))
    make: Callable[[], Any] = lambda: unpack(contents)  # noqa: E731
    return perform(job, shared(str(job.base.directory), make))
