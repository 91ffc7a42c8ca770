"""Commands as the files under docker/ and the pages under docs/ have them."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
BASE = DOCKER / "kubernetes" / "base"


def compose() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def compose_command(service: str) -> list[str]:
    return list(compose()["services"][service]["command"])


def compose_check(service: str) -> list[str]:
    kind, *command = compose()["services"][service]["healthcheck"]["test"]
    assert kind == "CMD"
    return command


def manifest(path: Path, kind: str) -> dict[str, Any]:
    """The only document of a kind in a file."""
    (found,) = (document for document in yaml.safe_load_all(path.read_text()) if document["kind"] == kind)
    return found


def ray_clusters() -> dict[str, dict[str, Any]]:
    """The cluster's specification in each manifest that has one."""
    return {
        "RayCluster": manifest(BASE / "cluster.yaml", "RayCluster")["spec"],
        "RayService": manifest(BASE / "service.yaml", "RayService")["spec"]["rayClusterConfig"],
    }


def kuberay_start(group: Mapping[str, Any], *, head: bool) -> list[str]:
    """``ray start`` as KubeRay calls it in a pod (its ``setMissingRayStartParams``, ``generateRayStartCommand``)."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["memory"].endswith("Gi")
    parameters = {
        "dashboard-agent-listen-port": "52365",
        "num-cpus": limits["cpu"],
        "memory": str(int(limits["memory"].removesuffix("Gi")) * 2**30),
        **({"dashboard-host": "0.0.0.0"} if head else {"address": "HEAD:6379"}),
        **group["rayStartParams"],
    }
    flags = [f"--{name}={value}" for name, value in parameters.items()]
    return ["ray", "start", *(["--head"] if head else []), *flags, "--block"]


def documented(page: str, beginning: str) -> list[str]:
    """The first command in the shell blocks of a page that begins so, as words."""
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().startswith(beginning):
                return shlex.split(line, comments=True)
    raise AssertionError(f"docs/{page} has no command that begins with {beginning!r}")


def adapted(command: list[str], changes: Mapping[str, object]) -> list[str]:
    """A command with other ports, addresses and paths."""
    places = re.compile("|".join(map(re.escape, changes)))
    return [places.sub(lambda found: str(changes[found[0]]), word) for word in command]
