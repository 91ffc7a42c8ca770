"""Prunings over HTTP: what is asked for comes out, and nothing of the server with it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ended, uploaded
from service_fakes import Scripted

from agents.cli import main
from recognizers.compact_file import load_compact
from recognizers.files import read_tensors


def test_a_pruning_of_uploaded_weights_equals_that_of_the_command_line(
    serve, small, weights: Path, tmp_path: Path, monkeypatch
) -> None:
    client = serve()
    id_ = uploaded(client, weights)
    answer = client.post("/v1/prunings", json={**small, "weights": id_, "seed": 3})
    assert answer.status_code == 202, answer.text
    pruning = ended(client, answer.json()["id"])
    assert pruning["state"] == "finished", pruning["failure"]
    monkeypatch.chdir(tmp_path)
    task = {
        "name": "digits/convnet",
        "recognizer": {"architecture": "convnet", "arguments": small["arguments"], "weights": str(weights)},
        "data": {"spec": "digits"},
        **{section: small[section] for section in ("recovery", "objective", "actions")},
    }
    Path("task.yaml").write_text(yaml.safe_dump(task))
    flags = ["--task", "task.yaml", "--policy", "uniform:l1", "--out", "run", "--seed", "3", "--json"]
    assert main(["prune", *flags]) == 0
    there, here = pruning["result"], json.loads((tmp_path / "run" / "summary.json").read_text())
    for key in ("validation_accuracy", "test_accuracy", "parameter_reduction", "macs_reduction", "kept_units"):
        assert there[key] == here[key]

    base = f"/v1/prunings/{pruning['id']}"
    assert set(pruning["artifacts"]) == {"mask", "model", "weights", "report"}
    for name in pruning["artifacts"]:
        (tmp_path / name).write_bytes(client.get(f"{base}/{name}").content)
    masks = [read_tensors(path)[0] for path in (tmp_path / "mask", tmp_path / "run" / "best.mask.safetensors")]
    assert {name: tensor.tolist() for name, tensor in masks[0].items()} == {
        name: tensor.tolist() for name, tensor in masks[1].items()
    }
    load_compact(tmp_path / "model")
    assert client.get(f"{base}/finetuned").status_code == 404
    page = client.get(f"{base}/report")
    assert "sandbox" in page.headers["content-security-policy"]
    for text in (page.text, json.dumps(pruning), client.get(f"{base}/events").text):
        assert str(tmp_path) not in text and str(weights.parent) not in text


def test_events_tell_the_whole_story_and_go_on_where_a_client_left(serve, small, weights: Path) -> None:
    client = serve()
    asked = {**small, "weights": uploaded(client, weights)}
    id_ = client.post("/v1/prunings", json=asked).json()["id"]
    ended(client, id_)
    events = _events(client.get(f"/v1/prunings/{id_}/events").text)
    kinds = [event["event"] for event in events]
    assert kinds[0] == "state" and kinds[1:3] == ["begun", "opened"] and set(kinds[3:]) <= {"step", "evaluations"}
    opened = json.loads(events[2]["data"])
    last = json.loads([event["data"] for event in events if event["event"] == "step"][-1])
    assert list(opened["units"].values()) == [6, 8, 8] and 0 < last["macs_reduction"] < 1
    rest = _events(client.get(f"/v1/prunings/{id_}/events", headers={"Last-Event-ID": events[3]["id"]}).text)
    assert [event["id"] for event in rest if "id" in event] == [event["id"] for event in events[4:]]
    anew = _events(client.get(f"/v1/prunings/{id_}/events", headers={"Last-Event-ID": "7.99"}).text)
    assert [event.get("id") for event in anew] == [event.get("id") for event in events]


def _events(text: str) -> list[dict[str, str]]:
    blocks = [block for block in text.split("\n\n") if block.strip() and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"policy": "unifrom:l1"}, "did you mean 'uniform:l1'"),
    ({"policy": "os:getcwd"}, "unknown policy"),
    ({"policy": "/etc/x.py:Class"}, "unknown policy"),
    ({"policy": "r2d2:/etc"}, "unknown policy"),
    ({"policy": "r2d2"}, "unknown policy"),
    ({"policy": "search:evolution", "settings": {"rules": ["os.path:join"]}}, "neither a plain word"),
    ({"policy": "search:evolution", "settings": {"rules": ["r2d2:/etc/x"]}}, "neither a plain word"),
    ({"policy": None, "controller": "none"}, "unknown controller"),
    ({"policy": None}, "give a policy or a controller"),
    ({"task": "digits/convnet"}, "give a task or an architecture"),
    ({"data": "npz:/etc/passwd"}, "data"),
    ({"weights": "../../../etc/passwd"}, "weights"),
    ({"weights": None}, "an architecture needs data and weights"),
    ({"objective": {"kind": "custom", "table": "/etc/passwd"}}, "unknown objective"),
    ({"objective": {"kind": "tolerance", "drop": 7}}, "objective"),
    ({"recovery": {"kind": "magic"}}, "unknown kind"),
    ({"actions": {"per_layr": 2}}, "did you mean 'per_layer'"),
    ({"seconds": 1e9}, "a pruning may take"),
    ({"seed": -1}, "seed"),
    ({"data_root": "/"}, "data_root"),
]


def test_bad_requests_are_refused_with_the_reason(serve, small, weights: Path) -> None:
    client = serve(executor=Scripted())
    right = {**small, "weights": uploaded(client, weights)}
    for change, part in BAD:
        answer = client.post("/v1/prunings", json={**right, **change})
        assert answer.status_code == 422 and part in answer.json()["detail"], (change, answer.text)
    assert client.get("/v1/prunings").json() == []


@pytest.mark.parametrize("name", ["/etc/passwd.yaml", "x.yaml", "digits/convent"])
def test_tasks_are_those_that_are_shipped(serve, name: str) -> None:
    answer = serve().post("/v1/prunings", json={"task": name, "policy": "random"})
    assert answer.status_code == 422 and "unknown task" in answer.json()["detail"]


def test_weights_of_another_network_fail_without_a_path(serve, small, weights: Path, tmp_path: Path) -> None:
    client = serve()
    asked = {**small, "weights": uploaded(client, weights), "arguments": {"widths": [5, 8, 8]}}
    pruning = ended(client, client.post("/v1/prunings", json=asked).json()["id"])
    assert pruning["state"] == "failed" and pruning["artifacts"] == []
    assert "does not hold weights for convnet" in pruning["failure"] and str(tmp_path) not in pruning["failure"]


def test_a_controller_prunes(serve, small, weights: Path, checkpoint: Path) -> None:
    client = serve(controllers={"small": checkpoint})
    asked = {**small, "weights": uploaded(client, weights), "policy": None, "controller": "small"}
    pruning = ended(client, client.post("/v1/prunings", json=asked).json()["id"])
    assert pruning["state"] == "finished", pruning["failure"]
    assert pruning["result"]["policy"] == "controller:small"


def test_cancelling_ends_the_process(serve, small, weights: Path) -> None:
    client = serve()
    slow = {"policy": "search:random", "settings": {"evaluations": 10**7}}
    asked = {**small, "weights": uploaded(client, weights), **slow}
    first, second = (client.post("/v1/prunings", json=asked).json()["id"] for _ in range(2))
    while client.get(f"/v1/prunings/{first}").json()["state"] != "running":
        pass
    assert client.post(f"/v1/prunings/{second}/cancel").json()["state"] == "cancelled"
    assert client.post(f"/v1/prunings/{first}/cancel").json()["state"] == "cancelling"
    assert ended(client, first)["state"] == "cancelled"
    assert client.post(f"/v1/prunings/{first}/cancel").status_code == 409


def test_a_pruning_stops_at_its_limit(serve, small, weights: Path) -> None:
    client = serve()
    slow = {"policy": "search:random", "settings": {"evaluations": 10**7}, "seconds": 1.0}
    asked = {**small, "weights": uploaded(client, weights), **slow}
    pruning = ended(client, client.post("/v1/prunings", json=asked).json()["id"])
    assert pruning["failure"] == "not finished within 1 seconds"
