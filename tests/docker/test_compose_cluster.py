"""Head and workers of the compose file, with a token; quick enough for every test run."""

import pytest
from nodes import Machine
from recipes import compose_check, compose_command, documented

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def cluster(machine: Machine) -> Machine:
    head = machine.start(machine.adapt(compose_command("head"), agent=0))
    machine.until_it_works(machine.adapt(compose_check("head")), head)
    worker = machine.start(machine.adapt(compose_command("worker"), agent=1))
    machine.until_it_works(machine.adapt(compose_check("worker"), agent=1), worker)
    # A node that has joined is in the head's status a few seconds later.
    counted = "ray status --address 127.0.0.1:6379 | grep -F '/3.0 CPU'"
    machine.until_it_works(machine.adapt(["sh", "-c", counted]), worker)
    return machine


def test_a_job_sees_both_nodes(cluster: Machine) -> None:
    words = documented("deployment.md", "docker compose exec head ray job submit")
    submit, status = (
        words[4 : words.index("--") + 1],
        documented("deployment.md", "docker compose exec head ray status"),
    )
    done = cluster.run([*cluster.adapt(submit), *status[4:]])
    assert done.returncode == 0, done.stdout + done.stderr
    # Of a job that ends at once `submit` may print nothing.
    logs = cluster.run(cluster.adapt(["ray", "job", "logs", "--address", "http://127.0.0.1:8265", "digits"]))
    assert "0.0/3.0 CPU" in logs.stdout  # the head's one, and the worker's two
    assert "succeeded" in done.stdout


@pytest.mark.parametrize("token", [None, "0" * 64])
def test_without_the_token_nobody_is_let_in(cluster: Machine, token: str | None) -> None:
    submit = cluster.adapt(["ray", "job", "submit", "--address", "http://127.0.0.1:8265", "--", "true"])
    refused = cluster.run(submit, RAY_AUTH_TOKEN=token, RAY_AUTH_MODE="token" if token else "disabled")
    assert refused.returncode != 0
    assert (
        "Invalid authentication token" if token else "Missing authentication token"
    ) in refused.stdout + refused.stderr
