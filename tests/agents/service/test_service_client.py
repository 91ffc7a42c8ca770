"""``zeroout prune --server``, and the page in a browser."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ended, listening, uploaded

from agents.cli import main
from agents.service.core import TOKENS
from agents.service.tokens import Tokens

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def task_file(small, home: Path) -> str:
    """The small task as a user's own file."""
    content = {
        "name": "mine",
        "recognizer": {"architecture": small["architecture"], "arguments": small["arguments"]},
        "data": {"spec": "digits"},
        **{section: small[section] for section in ("recovery", "objective", "actions")},
    }
    Path("task.yaml").write_text(yaml.safe_dump(content))
    return "task.yaml"


def test_prune_on_a_server_leaves_what_prune_leaves_here(
    serve, task_file: str, weights: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("ZEROOUT_TOKEN", Tokens(tmp_path / "service" / TOKENS).create("alice"))
    flags = ["--task", task_file, "--weights", str(weights), "--policy", "uniform:l1", "--seed", "3", "--json"]
    with listening(serve()) as url:
        assert main(["prune", "--server", url, *flags, "--out", "there"]) == 0
    there = json.loads(capsys.readouterr().out)
    assert main(["prune", *flags, "--out", "here"]) == 0
    here = json.loads(capsys.readouterr().out)
    for key in ("test_accuracy", "parameter_reduction", "kept_units", "episode_return"):
        assert there[key] == here[key]
    missing = {path.name for path in Path("here").iterdir()} - {path.name for path in Path("there").iterdir()}
    assert missing == {"episodes.jsonl"}
    assert not list((tmp_path / "service" / "uploads").iterdir())
    assert main(["export", "there", "--to", "compact"]) == 0


def test_what_only_holds_here_is_not_sent(home: Path, task_file: str, capsys) -> None:
    server = ["--server", "http://127.0.0.1:9", "--policy", "random"]
    for flags, part in [
        (["--task", "digits/convnet", "--data", "npz:mine.npz"], "data of the server"),
        (["--task", "digits/convnet", "recognizer.batch_size=7"], "needs a task file"),
        (["--task", task_file], "needs --weights"),
        (["--task", "digits/convnet"], "cannot be reached"),
    ]:
        assert main(["prune", *server, *flags]) == 2
        assert part in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_in_a_browser(serve, small, weights: Path, tmp_path: Path) -> None:
    client = serve()
    asked = {**small, "weights": uploaded(client, weights)}
    for policy in ("random", "global:l1", "uniform:l1"):
        ended(client, client.post("/v1/prunings", json={**asked, "policy": policy}).json()["id"])
    # The picture in the README: ZEROOUT_SCREENSHOT=docs/service.png
    picture = Path(os.environ.get("ZEROOUT_SCREENSHOT", tmp_path / "page.png")).absolute()
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
    with listening(client) as url:
        shown = subprocess.run(
            [*command, "--virtual-time-budget=8000", "--dump-dom", url], capture_output=True, text=True, check=True
        ).stdout
        size = ["--window-size=1200,760", "--virtual-time-budget=8000"]
        subprocess.run([*command, *size, f"--screenshot={picture}", url], capture_output=True, check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "digits/convnet, uniform:l1" in shown and "finished" in shown and "of the MACs" in shown
    assert shown.count("<meter") == 3 and '<polyline class="macs" points="' in shown
    for artifact in ("mask", "model", "weights", "report"):
        assert f">{artifact}</button>" in shown
