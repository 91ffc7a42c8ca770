"""What a death costs a training: ``python -m tests.benchmarks.faults`` fills a table that can be resumed.

Several Ray nodes run on this machine; a controller is trained on a small task, and a runner, a node with a runner, the
learner or the driver is killed (SIGKILL) while the driver samples, learns or writes a checkpoint. The driver is started
again with the run's last checkpoint, a node by an empty one; the rest is the training's own business. Each row has the
seconds of an iteration (about 200 environment steps) before, during and after, and what had to be done again.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.experimental import internal_kv

from agents.cluster import start_ray
from agents.controller import ControllerTraining, load_controller
from agents.r2d2.algorithm import R2D2
from agents.run_directory import RunDirectory
from agents.workbench import open_environment
from envs.tasks import load_task
from tests.benchmarks.tables import Row, read_rows, replace_rows, rounded

RESULTS = Path(__file__).parent / "results" / "faults.csv"
KEY = ("killed", "while")
VICTIMS = ("runner", "node", "learner", "driver")
PHASES = ("sampling", "learning", "checkpointing")
RUNNERS = 2
BEFORE, AFTER = 6, 6
"""Iterations that are timed before the fault and after the recovery."""
NODE_WAIT_S = 10.0
"""Seconds until another node takes the place of a dead one."""
TASK = [
    "recognizer.arguments={widths: [6, 8, 8]}",
    "recognizer.training.epochs=6",
    "recovery.images=64",
    "actions.per_layer=4",
    "objective.drop=0.1",
]
CONTROLLER = [
    "network.lstm_size=32",
    "network.encoder_size=32",
    "replay.warmup=100",
    f"sampling.num_env_runners={RUNNERS}",
    "sampling.num_envs_per_env_runner=2",
    "sampling.cpus_per_env_runner=1",
    "evaluation_interval=400",
    "total_steps=1000000",
    "max_seconds=null",
]


def say(**line: Any) -> None:
    """A line from the driver to the process that watches it."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def drive(run_path: Path, address: str, victim: str, phase: str, *, armed: bool, raylets: dict[str, int]) -> None:
    """Train in this process until the fault is over; kill the victim on the way, if ``armed``."""

    def strike(algorithm: R2D2) -> None:
        """Kill. A line is said before, since the driver has no later."""
        if victim == "learner":
            (answer,) = algorithm.learner_group.foreach_learner(lambda _: os.getpid())
            process = answer.get()
        elif victim == "driver":
            process = os.getpid()
        else:
            process, node = algorithm.env_runner_group.foreach_env_runner(
                lambda _: (os.getpid(), ray.get_runtime_context().get_node_id()), local_env_runner=False
            )[0]
            process = raylets[node] if victim == "node" else process
        say(killed=victim)
        os.kill(process, signal.SIGKILL)

    class Watched(ControllerTraining):
        """Says how long its iterations take, and ends some iterations after the fault is over."""

        struck = not armed
        missed = False
        rounds = 0
        calm = 0

        def _algorithm(self) -> R2D2:
            say(begins=self.progress.steps)
            algorithm = super()._algorithm()
            train = algorithm.train

            def timed() -> Any:
                started = time.perf_counter()
                metrics = train()
                alive = algorithm.env_runner_group.num_healthy_remote_workers()
                say(seconds=time.perf_counter() - started, steps=int(metrics["num_env_steps_lifetime"]), alive=alive)
                assert_whole(algorithm)
                self.rounds += 1
                self.missed |= alive < RUNNERS
                over = self.struck and alive == RUNNERS and (self.missed or victim in ("learner", "driver"))
                self.calm = self.calm + 1 if over else 0
                return metrics

            algorithm.train = timed
            owner, name = {
                "sampling": (algorithm, "_collect_samples"),
                "learning": (algorithm, "_update"),
                "checkpointing": (algorithm.local_replay_buffer, "get_state"),
            }[phase]
            call: Callable[[], Any] = getattr(owner, name)

            def hooked() -> Any:
                if not self.struck and self.rounds >= BEFORE:
                    self.struck = True
                    strike(algorithm)
                return call()

            setattr(owner, name, hooked)
            return algorithm

        def _finished(self) -> bool:
            return self.calm >= AFTER

    start_ray(address)
    directory = RunDirectory.create(run_path, "train", resume=True)
    env = open_environment(load_task("digits/convnet", TASK), directory, progress=False)
    learners = [f"learners.num_learners={int(victim == 'learner')}"]
    training = Watched(
        load_controller("quickstart", [*CONTROLLER, *learners]),
        directory,
        env,
        resume=(directory.checkpoints / "progress.json").is_file(),
        progress=False,
    )
    try:
        training.train()
    finally:
        training.stop()


def assert_whole(algorithm: R2D2) -> None:
    """No sequence in replay ends before its time."""
    buffer = algorithm.local_replay_buffer
    for episode in buffer._episodes.values():
        for slot in episode.slots:
            start = int(buffer._sequences.start[slot])
            whole = episode.done or start + buffer.train_length <= len(episode)
            assert whole, f"sequence from {start} of an episode of {len(episode)} steps that goes on"


class Nodes:
    """Ray nodes on this machine: a head for the driver, and one per runner or learner."""

    def __init__(self, count: int) -> None:
        # A head takes over what a process that runs Ray already asks for its registered environments, and more.
        self._asked = internal_kv.internal_kv_get_gcs_client()
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self._nodes = [self.add() for _ in range(count)]

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self._cluster.list_all_nodes()):
            self._cluster.remove_node(node, allow_graceful=False)
        internal_kv._internal_kv_reset()
        if self._asked is not None:
            internal_kv._initialize_internal_kv(self._asked)

    @property
    def address(self) -> str:
        """Of the head."""
        address: str = self._cluster.address
        return address

    @property
    def raylets(self) -> dict[str, int]:
        """Process of each node."""
        return {node.node_id: node.all_processes["raylet"][0].process.pid for node in self._nodes}

    def add(self) -> Any:
        """One more."""
        return self._cluster.add_node(num_cpus=1)


def measure(victim: str, phase: str) -> Row:
    """One row of the table."""
    with (
        tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as directory,
        temporary_files_of_ray(directory),
        Nodes(RUNNERS + (victim == "learner")) as nodes,
    ):
        command = [sys.executable, "-m", "tests.benchmarks.faults", "--drive", victim, phase]
        command += [directory, nodes.address, json.dumps(nodes.raylets)]
        lines: list[dict[str, Any]] = []
        for line in _lines(command):
            lines.append({**line, "at": time.perf_counter()})
            if line.get("killed") == "node":
                time.sleep(NODE_WAIT_S)
                nodes.add()
        if victim == "driver":
            lines += [{**line, "at": time.perf_counter()} for line in _lines([*command, "--again"])]
    return {"killed": victim, "while": phase, **figures(lines)}


@contextmanager
def temporary_files_of_ray(directory: str) -> Iterator[None]:
    """Else whatever is started meanwhile would take these nodes for this machine's cluster, and join them."""
    before = os.environ.get("RAY_TMPDIR")
    os.environ["RAY_TMPDIR"] = directory
    try:
        yield
    finally:
        os.environ.pop("RAY_TMPDIR")
        if before is not None:
            os.environ["RAY_TMPDIR"] = before


def _lines(command: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What a driver says. Where it was to be killed, that is its end."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    killed = None
    assert process.stdout is not None
    for text in process.stdout:
        if text.startswith("{"):
            line = json.loads(text)
            killed = line.get("killed", killed)
            yield line
    expected = -signal.SIGKILL if killed == "driver" else 0
    if process.wait() != expected:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")


def figures(lines: Sequence[dict[str, Any]]) -> Row:
    """What the lines of a case come to.

    Recovery is when all runners are at work again and the training is no less far than at the fault.
    """
    (fault,) = [index for index, line in enumerate(lines) if "killed" in line]
    before, later = ([line for line in part if "seconds" in line] for part in (lines[:fault], lines[fault:]))
    reached = before[-1]["steps"]
    again = [reached - line["begins"] for line in lines[fault:] if "begins" in line]
    # A dead runner is missed when its answer is, so the first iterations may count it still.
    short = [index for index, line in enumerate(later) if line["alive"] < RUNNERS or line["steps"] < reached]
    back = short[-1] + 1 if short else 0
    worst = max(range(back + 1), key=lambda index: later[index]["seconds"])
    after = later[max(back, worst) + 1 :][-AFTER:]
    return rounded(
        {
            "iteration before (s)": median(line["seconds"] for line in before[1:]),
            "longest iteration during (s)": later[worst]["seconds"],
            "iteration after (s)": median(line["seconds"] for line in after),
            "until recovery (s)": later[back]["at"] - lines[fault]["at"],
            "steps done again": again[0] if again else 0,
        }
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the table lacks."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--kill", action="append", choices=VICTIMS, help="default: all")
    parser.add_argument("--while", action="append", choices=PHASES, dest="phases", help="default: all")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="CSV", help="the table")
    parser.add_argument("--drive", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--again", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.drive:
        victim, phase, directory, address, raylets = given.drive
        drive(Path(directory) / "run", address, victim, phase, armed=not given.again, raylets=json.loads(raylets))
        return 0
    given.out.parent.mkdir(parents=True, exist_ok=True)
    known = {tuple(row[column] for column in KEY) for row in read_rows(given.out)}
    for victim in given.kill or VICTIMS:
        for phase in given.phases or PHASES:
            if (victim, phase) not in known:
                row = measure(victim, phase)
                replace_rows(given.out, KEY, [row])
                print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
