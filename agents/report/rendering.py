"""From templates to pages that need no other file and no network."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from agents.report.palette import COLOURS
from recognizers.files import read_text

_HERE = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """A page from a template of this folder, with the common style sheet as ``style``."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(style=Markup(_style_sheet()), **values)


def _style_sheet() -> str:
    light = "".join(f"--{name}: {light}; " for name, (light, _) in COLOURS.items())
    dark = "".join(f"--{name}: {dark}; " for name, (_, dark) in COLOURS.items())
    schemes = f":root {{ {light}}}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}\n"
    return schemes + read_text(_HERE / "report.css")
