"""The recipes to their end: a training on two nodes, the service, TensorBoard, what KubeRay would start."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes import Machine
from recipes import (
    BASE,
    DOCKER,
    ROOT,
    compose_check,
    compose_command,
    documented,
    kuberay_start,
    manifest,
    ray_clusters,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SMALL = [
    "recognizer.arguments={widths: [6, 8, 8]}",
    "recognizer.training.epochs=2",
    "recovery.images=64",
    "actions.per_layer=4",
    "controller.network.lstm_size=8",
    "controller.network.encoder_size=8",
    "controller.replay.warmup=40",
    "controller.learning.batch_size=4",
    "controller.total_steps=300",
    "controller.evaluation_interval=150",
    "controller.sampling.num_env_runners=2",
]
"""Settings that make a documented training last seconds."""
PROBE = ["wget", "--quiet", "--tries=1", "--timeout=4", "--output-document=-"]


@pytest.fixture
def fresh() -> Iterator[Machine]:
    with Machine() as machine:
        yield machine


def test_a_documented_cluster_trains_a_controller_through_a_job(fresh: Machine) -> None:
    head = fresh.start(fresh.adapt(documented("cluster.md", "ray start --head"), agent=0))
    fresh.until_it_works(fresh.adapt(compose_check("head")), head)
    join = documented("cluster.md", "ray start --address")
    refused = fresh.run(fresh.adapt(join, agent=2), RAY_AUTH_TOKEN="0" * 64)
    assert refused.returncode != 0
    assert "auth" in (refused.stdout + refused.stderr).lower()
    worker = fresh.start(fresh.adapt(join, agent=1))
    fresh.until_it_works(fresh.adapt(compose_check("worker"), agent=1), worker)

    submit = [*fresh.adapt(documented("cluster.md", "ray job submit --submission-id")), *SMALL]
    address = f"http://127.0.0.1:{fresh.dashboard}"
    refused = fresh.run(submit, RAY_ADDRESS=address, RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN=None)
    assert refused.returncode != 0
    assert "Missing authentication token" in refused.stdout + refused.stderr
    done = fresh.run(submit, RAY_ADDRESS=address)
    assert done.returncode == 0, done.stdout + done.stderr
    run = fresh.directory / "runs" / "digits"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["command"] == "train"
    assert summary["environment_steps"] >= 300
    assert (run / "best.mask.safetensors").is_file()
    learning = [json.loads(line) for line in (run / "learning.jsonl").read_text().splitlines()]
    assert learning[-1]["runners_alive"] == 2
    followed = fresh.run(documented("cluster.md", "ray job logs")[:-1], RAY_ADDRESS=address)
    assert followed.returncode == 0 and "r2d2" in followed.stdout


def test_service_and_tensorboard_of_the_compose_file(fresh: Machine) -> None:
    create = documented("deployment.md", "docker compose run --rm service zeroout serve")
    token = fresh.run(fresh.adapt(create[5:])).stdout.strip()
    service = fresh.start(fresh.adapt(compose_command("service")))
    fresh.until_it_works(fresh.adapt(compose_check("service")), service)
    prune = documented("deployment.md", "docker compose exec --env ZEROOUT_TOKEN")
    client = fresh.adapt(prune[prune.index("service") + 1 :])
    refused = fresh.run(client)
    assert refused.returncode != 0 and "token" in refused.stderr
    done = fresh.run(client, ZEROOUT_TOKEN=token)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (fresh.directory / "runs" / "pruned" / "best.mask.safetensors").is_file()

    board = fresh.start(fresh.adapt(compose_command("tensorboard")))
    answer = fresh.until_it_works(fresh.adapt(compose_check("tensorboard")), board)
    assert json.loads(answer)["data_location"] == str(fresh.directory / "runs")


def probe(machine: Machine, group: dict[str, object], agent: int) -> list[str]:
    """The readiness probe of a pod, as a command."""
    action = group["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]  # type: ignore[index]
    return machine.adapt([*PROBE, f"http://127.0.0.1:{action['port']}{action['path']}"], agent=agent)


def start_as_kuberay(machine: Machine, kind: str) -> Path:
    """Start the head and a worker of a manifest's cluster, each ready before the next; return the worker's log."""
    cluster = ray_clusters()[kind]
    (workers,) = cluster["workerGroupSpecs"]
    for agent, group in enumerate((cluster["headGroupSpec"], workers)):
        log = machine.start(machine.adapt(kuberay_start(group, head=agent == 0), agent=agent))
        machine.until_it_works(probe(machine, group, agent), log)
    return log


def test_ray_service_as_kuberay_starts_it_prunes_for_a_client(fresh: Machine) -> None:
    log = start_as_kuberay(fresh, "RayService")

    # kubectl create secret --from-file=tokens/tokens.json, mounted into the service's directory
    create = documented("deployment.md", "zeroout serve --out tokens")
    token = fresh.run(create).stdout.strip()
    runs = fresh.directory / "runs"
    (runs / "service").mkdir()
    (runs / "tokens" / "tokens.json").rename(runs / "service" / "tokens.json")
    config = runs / "serve.yaml"
    text = manifest(BASE / "service.yaml", "RayService")["spec"]["serveConfigV2"]
    (adapted,) = fresh.adapt([text])
    config.write_text(adapted)
    deploy = ["serve", "deploy", "--address", f"http://127.0.0.1:{fresh.dashboard}", str(config)]
    assert fresh.run(deploy, RAY_AUTH_TOKEN="0" * 64).returncode != 0
    done = fresh.run(deploy)
    assert done.returncode == 0, done.stdout + done.stderr
    fresh.until_it_works(fresh.adapt(compose_check("service")), log)

    client = fresh.adapt(
        shlex.split(
            "zeroout prune --server http://127.0.0.1:8000 --task digits/convnet --policy uniform:l1 --out pruned"
        )
    )
    assert fresh.run(client).returncode != 0
    done = fresh.run(client, ZEROOUT_TOKEN=token)
    assert done.returncode == 0, done.stdout + done.stderr + (runs / "service" / "service.log").read_text()[-2000:]
    assert (runs / "pruned" / "best.mask.safetensors").is_file()


def test_ray_job_on_the_ray_cluster_as_kuberay_starts_it(fresh: Machine) -> None:
    start_as_kuberay(fresh, "RayCluster")

    entrypoint = manifest(DOCKER / "kubernetes" / "job.yaml", "RayJob")["spec"]["entrypoint"]
    address = f"http://127.0.0.1:{fresh.dashboard}"
    submit = ["ray", "job", "submit", "--address", address, "--", *fresh.adapt(shlex.split(entrypoint))]
    done = fresh.run([*submit, *SMALL])
    assert done.returncode == 0, done.stdout + done.stderr
    assert (fresh.directory / "runs" / "digits" / "best.mask.safetensors").is_file()


def test_the_documented_token_file_is_what_compose_reads(fresh: Machine) -> None:
    (line,) = (
        line
        for line in (ROOT / "docs" / "deployment.md").read_text().splitlines()
        if line.startswith("(umask 077; printf")
    )
    assert fresh.run(["sh", "-c", line]).returncode == 0
    written = fresh.directory / "runs" / "cluster.env"
    assert written.stat().st_mode & 0o077 == 0
    values = dict(pair.split("=", 1) for pair in written.read_text().splitlines())
    assert values["RAY_AUTH_MODE"] == "token"
    assert len(bytes.fromhex(values["RAY_AUTH_TOKEN"])) == 32
