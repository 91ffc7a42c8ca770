"""Compose file and manifests: schemas, as far as packages carry them, and what must hold for safety."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import kubernetes_validate
import pytest
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from ray.serve.schema import ServeDeploySchema
from recipes import BASE, DOCKER, ROOT, compose, manifest, ray_clusters

from agents.service.settings import ServiceSettings

KUBERNETES = "1.37"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Metadata(Strict):
    name: str = Field("", pattern="^[a-z][a-z0-9-]*$")
    generate_name: str = Field("", alias="generateName")
    namespace: str | None = None


class Auth(Strict):
    mode: Literal["token"]
    secret_name: Literal["zeroout-ray-token"] = Field(alias="secretName")


class Autoscaler(Strict):
    idle_timeout_seconds: int = Field(alias="idleTimeoutSeconds", ge=1)
    resources: dict[str, dict[str, str]]
    security_context: dict[str, Any] = Field(alias="securityContext")


class Head(Strict):
    service_type: Literal["ClusterIP"] = Field(alias="serviceType")
    ray_start_params: dict[str, str] = Field(alias="rayStartParams")
    template: dict[str, Any]


class Workers(Strict):
    group_name: str = Field(alias="groupName")
    replicas: Literal[0]
    min_replicas: Literal[0] = Field(alias="minReplicas")
    max_replicas: int = Field(alias="maxReplicas", ge=1)
    ray_start_params: dict[str, str] = Field(alias="rayStartParams")
    template: dict[str, Any]


class Cluster(Strict):
    ray_version: str = Field(alias="rayVersion")
    auth: Auth = Field(alias="authOptions")
    autoscaling: Literal[True] = Field(alias="enableInTreeAutoscaling")
    autoscaler: Autoscaler = Field(alias="autoscalerOptions")
    head: Head = Field(alias="headGroupSpec")
    workers: list[Workers] = Field(alias="workerGroupSpecs", min_length=1)


class RayCluster(Strict):
    api_version: Literal["ray.io/v1"] = Field(alias="apiVersion")
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: Cluster


class Upgrade(Strict):
    type: Literal["None"]


class ServiceSpec(Strict):
    upgrade: Upgrade = Field(alias="upgradeStrategy")
    serve_config: str = Field(alias="serveConfigV2")
    cluster: Cluster = Field(alias="rayClusterConfig")


class RayService(Strict):
    api_version: Literal["ray.io/v1"] = Field(alias="apiVersion")
    kind: Literal["RayService"]
    metadata: Metadata
    spec: ServiceSpec


class JobSpec(Strict):
    cluster: dict[Literal["ray.io/cluster"], str] = Field(alias="clusterSelector")
    entrypoint: str = Field(pattern="^zeroout train ")
    submitter: dict[str, Any] = Field(alias="submitterPodTemplate")


class RayJob(Strict):
    api_version: Literal["ray.io/v1"] = Field(alias="apiVersion")
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


def _local(port: str) -> str:
    assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), port
    return port


class HealthCheck(Strict):
    test: list[str] = Field(min_length=2)
    interval: str
    timeout: str
    retries: int
    start_period: str


class ComposeService(Strict):
    image: str
    build: dict[Literal["context", "dockerfile"], str] | None = None
    hostname: str | None = None
    init: Literal[True]
    restart: Literal["unless-stopped"]
    env_file: Literal["cluster.env"]
    command: list[str]
    ports: list[Annotated[str, AfterValidator(_local)]] = []
    volumes: list[Literal["runs:/runs", "data:/data"]]
    healthcheck: HealthCheck
    depends_on: dict[str, dict[Literal["condition"], Literal["service_healthy"]]] = {}
    deploy: dict[Literal["replicas"], int] = {}
    cap_drop: list[Literal["ALL"]] = Field(min_length=1)
    security_opt: list[Literal["no-new-privileges:true"]] = Field(min_length=1)
    stop_grace_period: str
    shm_size: str | None = None
    mem_limit: str


class Compose(BaseModel):
    model_config = ConfigDict(extra="ignore")
    name: str
    services: dict[str, ComposeService]
    volumes: dict[Literal["runs", "data"], None]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, cluster in ray_clusters().items():
        yield f"{name} head", cluster["headGroupSpec"]["template"]
        for group in cluster["workerGroupSpecs"]:
            yield f"{name} {group['groupName']}", group["template"]
    yield "submitter", manifest(DOCKER / "kubernetes" / "job.yaml", "RayJob")["spec"]["submitterPodTemplate"]


def resources() -> list[dict[str, Any]]:
    """What kustomize would apply, before its changes."""
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    assert sorted([*listed, "kustomization.yaml"]) == sorted(path.name for path in BASE.iterdir())
    return [document for name in listed for document in yaml.safe_load_all((BASE / name).read_text())]


def test_compose_file_has_known_fields_and_publishes_on_this_machine_alone() -> None:
    read = Compose.model_validate(compose())
    assert set(read.services) == {"head", "worker", "service", "tensorboard"}
    assert read.services["worker"].deploy == {"replicas": 2}
    assert read.services["worker"].depends_on.keys() <= read.services.keys()


def test_kinds_of_kuberay_have_known_fields() -> None:
    kinds = {"RayCluster": RayCluster, "RayService": RayService}
    read = {item["kind"]: kinds[item["kind"]].model_validate(item) for item in resources() if item["kind"] in kinds}
    assert read.keys() == kinds.keys()
    job = RayJob.model_validate(manifest(DOCKER / "kubernetes" / "job.yaml", "RayJob"))
    assert job.spec.cluster["ray.io/cluster"] == read["RayCluster"].metadata.name


def test_kinds_of_kubernetes_fit_their_schemas() -> None:
    own = [item for item in resources() if not item["apiVersion"].startswith("ray.io/")]
    assert {item["kind"] for item in own} == {"Namespace", "PersistentVolumeClaim", "NetworkPolicy"}
    for item in own:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)


@pytest.mark.parametrize(("name", "template"), pods(), ids=lambda value: value if isinstance(value, str) else "")
def test_pods_fit_their_schema_and_have_no_rights(name: str, template: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    spec = template["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec.get("automountServiceAccountToken") is False or name.endswith("head")  # the autoscaler's pod needs one
    (container,) = spec["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert container["resources"].keys() == {"requests", "limits"}
    if name != "submitter":
        assert {"readinessProbe", "livenessProbe"} <= container.keys()
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    assert {mount["name"] for mount in container.get("volumeMounts", [])} == volumes


def test_a_wrong_pod_would_not_pass() -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": {"containers": [{"nam": "x"}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_only_ray_the_operator_submitters_and_clients_get_in() -> None:
    policies = {item["metadata"]["name"]: item["spec"] for item in resources() if item["kind"] == "NetworkPolicy"}
    assert policies["ray-ingress"]["podSelector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}
    assert policies["worker-egress"]["policyTypes"] == ["Egress"]
    opened = {
        port["port"]: [peer["podSelector"]["matchLabels"] for peer in rule["from"]]
        for rule in policies["ray-ingress"]["ingress"]
        for port in rule.get("ports", [{"port": None}])
    }
    submitter = manifest(DOCKER / "kubernetes" / "job.yaml", "RayJob")["spec"]["submitterPodTemplate"]["metadata"][
        "labels"
    ]
    operator = {"app.kubernetes.io/name": "kuberay-operator"}
    assert opened == {
        None: [{"ray.io/is-ray-node": "yes"}],
        8265: [submitter, operator],
        8000: [operator, {"zeroout.client": "true"}],
    }


def test_serve_configuration_is_the_services() -> None:
    spec = manifest(BASE / "service.yaml", "RayService")["spec"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    settings = ServiceSettings.model_validate(config.applications[0].args)
    assert (settings.host, settings.port) == (config.http_options.host, config.http_options.port)
    assert not settings.local  # so it asks for tokens
    (head,) = spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    mounts = {mount["mountPath"] for mount in head["volumeMounts"]}
    assert str(settings.directory / "tokens.json") in mounts


def test_spot_patches_reach_all_worker_groups() -> None:
    patches = yaml.safe_load((DOCKER / "kubernetes" / "spot" / "kustomization.yaml").read_text())["patches"]
    documents = {item["metadata"]["name"]: item for item in resources() if item["kind"].startswith("Ray")}
    assert {patch["target"]["name"] for patch in patches} == documents.keys()
    for patch in patches:
        operations = yaml.safe_load(patch["patch"])
        assert [operation["path"].rpartition("/")[2] for operation in operations] == ["nodeSelector", "tolerations"]
        for operation in operations:
            place: Any = documents[patch["target"]["name"]]
            for part in operation["path"].split("/")[1:-1]:
                place = place[int(part)] if isinstance(place, list) else place[part]
            place[operation["path"].rpartition("/")[2]] = operation["value"]
    groups = [documents["zeroout"]["spec"], documents["zeroout-service"]["spec"]["rayClusterConfig"]]
    for group in [group for cluster in groups for group in cluster["workerGroupSpecs"]]:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        assert group["template"]["spec"]["tolerations"]


def test_versions_and_images_agree() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    ray = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert version and ray
    assert {cluster["rayVersion"] for cluster in ray_clusters().values()} == {ray[1]}
    image = f"zeroout:{version[1]}"
    assert {service["image"] for service in compose()["services"].values()} == {image}
    assert image in (DOCKER / "Dockerfile").read_text()
    (rename,) = yaml.safe_load((BASE / "kustomization.yaml").read_text())["images"]
    assert f"{rename['name']}:{rename['newTag']}" == image
    images = {name: template["spec"]["containers"][0]["image"] for name, template in pods()}
    assert {images.pop("submitter")} == {image} and set(images.values()) == {"zeroout"}


def test_no_secret_is_in_the_files() -> None:
    for path in DOCKER.rglob("*"):
        if path.is_file() and path.name != "cluster.env":
            assert not re.search(r"[0-9a-f]{32}|kind: Secret", path.read_text()), path
    assert "/docker/cluster.env" in (ROOT / ".gitignore").read_text().splitlines()
    assert Path(compose()["services"]["head"]["env_file"]).name == "cluster.env"
