"""What the image gets: the wheel that its Dockerfile builds from the files that it copies."""

import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from recipes import DOCKER, ROOT

DOCKERFILE = (DOCKER / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile, in their order."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def runs(beginning: str) -> list[str]:
    (found,) = (words for name, words in instructions() if name == "RUN" and words.startswith(beginning))
    return shlex.split(found)


def ignored(path: Path) -> bool:
    """Whether .dockerignore leaves a path out: the last line that fits it or a folder of it counts."""
    out = False
    for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            kept = line.startswith("!")
            if any(fnmatch.fnmatch(str(one), line.removeprefix("!")) for one in [path, *path.parents][:-1]):
                out = not kept
    return out


def files() -> list[Path]:
    """All files of the repository, also those that are new."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [path for path in map(Path, listed.stdout.splitlines()) if (ROOT / path).is_file()]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the Dockerfile copies out of the repository."""
    context = tmp_path_factory.mktemp("context")
    copied = [shlex.split(words) for name, words in instructions() if name == "COPY" and not words.startswith("--from")]
    sources = {source for *several, _ in copied for source in several}
    for path in files():
        if path.parts[0] in sources and not ignored(path):
            (context / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, context / path)
    assert sources == {path.name for path in context.iterdir()}
    return context


def test_the_wheel_holds_code_settings_and_page(context: Path) -> None:
    words = runs("pip wheel")
    words[words.index("/wheels")] = str(context / "wheels")
    # Without a network: the build's own requirement is what is installed here.
    done = subprocess.run(
        [sys.executable, "-m", *words, "--no-build-isolation", "--no-index"],
        cwd=context,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (context / "wheels").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    floors = ("recognizers", "envs", "agents", "configs")
    assert {str(path) for path in files() if path.parts[0] in floors and path.suffix == ".py"} <= names
    needed = {"configs/tasks/digits/convnet.yaml", "configs/r2d2/default.yaml", "agents/service/page/page.js"}
    assert needed <= names
    assert not any(name.startswith(("tests/", "docs/", "docker/", "configs/benchmarks/results/")) for name in names)

    words = runs("pip install --no-cache-dir")
    words[words.index("/wheels")] = str(context / "wheels")
    done = subprocess.run(
        [sys.executable, "-m", *words, "--target", str(context / "installed")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    main = "import sys; from agents.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", main, "--help"],
        cwd=context / "wheels",
        env={"PYTHONPATH": str(context / "installed")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "serve" in done.stdout


def test_the_image_runs_without_rights_on_a_named_version() -> None:
    steps = instructions()
    bases = [words for name, words in steps if name == "FROM"]
    assert all(base.startswith("python:${PYTHON}") for base in bases)
    (version,) = (words for name, words in steps if name == "ARG" and words.startswith("PYTHON="))
    assert re.fullmatch(r"PYTHON=3\.11\.\d+-slim-\w+", version)
    users = [index for index, (name, words) in enumerate(steps) if name == "USER" and words == "1000:1000"]
    last_run = max(index for index, (name, _) in enumerate(steps) if name == "RUN")
    assert users and users[-1] > last_run
    assert "--constraint constraints.txt" in DOCKERFILE
