"""The README, as it stands: its Python runs, its commands are understood, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from agents.cli.main import build_parser, parse
from recognizers.blueprint import Blueprint
from recognizers.config import WEIGHTS_VARIABLE, save_weights
from recognizers.zoo import create

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("snippet", blocks("python"))
def test_its_python_runs(
    snippet: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = create("convnet", classes=10, in_channels=1)  # untrained: nothing is trained on the way
    save_weights(Path("convnet.safetensors"), network.state_dict(), Blueprint("convnet", 10, 1))
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(Path.cwd()))
    exec(compile(snippet, str(README), "exec"), {})
    assert capsys.readouterr().out


def test_its_commands_are_understood() -> None:
    used = set()
    for line in "".join(blocks("sh")).replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True) or [""]
        if program == "zeroout" and arguments != ["--help"]:
            used.add(parse(arguments).command)
    (commands,) = (action for action in build_parser()._actions if action.dest == "command")
    assert commands.choices is not None
    missing = set(commands.choices) - used
    assert all(f"`zeroout {command}`" in README.read_text() or command == "quickstart" for command in missing)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target
