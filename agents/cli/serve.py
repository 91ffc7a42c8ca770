"""``zeroout serve``: the agent service."""

import argparse
from pathlib import Path
from typing import Any

from agents.cli.arguments import add_command, add_common
from agents.cli.output import note
from recognizers.errors import ConfigurationError


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "serve",
        "serve prunings and trained controllers over HTTP, on Ray Serve",
        "zeroout serve --controller digits=runs/digits\n"
        "  zeroout serve --create-token alice && zeroout serve --host 0.0.0.0 limits.concurrent_jobs=8",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; any but this machine's needs a token"
    )
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")
    parser.add_argument(
        "--controller",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="serve a controller of your own `zeroout train` (checkpoints are pickles); may be given several times",
    )
    parser.add_argument("--workers", type=int, default=1, help="prunings that run at a time (default: 1)")
    parser.add_argument("--address", help="of a Ray cluster, e.g. auto (default: this machine)")
    parser.add_argument("--create-token", metavar="NAME", help="make a token, show it once, and end")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/service"),
        metavar="DIR",
        help="records and results (default: runs/service)",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="limits, e.g. limits.job_seconds=600, limits.upload_bytes=100000000",
    )
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Serve, or make a token."""
    try:
        from agents.service.core import TOKENS
        from agents.service.deployment import run as serve
        from agents.service.settings import ServiceSettings
        from agents.service.tokens import Tokens
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"the service needs {error.name}: pip install 'zeroout[serve]'") from error
    from recognizers.settings import validate

    directory: Path = arguments.out.absolute()
    if arguments.create_token is not None:
        token = Tokens(directory / TOKENS).create(arguments.create_token)
        return {"name": arguments.create_token, "token": token, "_text": token}
    tree = {
        "directory": directory,
        "host": arguments.host,
        "port": arguments.port,
        "workers": arguments.workers,
        "controllers": dict(map(_controller, arguments.controller)),
        "home": Path.cwd(),
    }
    settings = validate(ServiceSettings, tree, "zeroout serve", arguments.overrides)
    note(f"http://{settings.host}:{settings.port}, in {directory}; ends on Ctrl-C", quiet=arguments.json)
    serve(settings, arguments.address)
    return {"directory": str(directory), "_text": f"ended; records and results are in {directory}"}


def _controller(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise ConfigurationError(f"--controller {text!r} must read NAME=DIR")
    return name, Path(path).absolute()
