"""What the pages of this package share: their templates, their style, and writing them out as one file."""

from datetime import datetime
from pathlib import Path
from typing import Any

from onefold.core.files import atomic_write


def write_page(template: str, path: Path, **values: Any) -> Path:
    """Render a template of this folder, everything escaped that is not marked as safe, into one HTML file."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from onefold import __version__

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    css = Markup((here / "page.css").read_text("utf-8"))
    now = datetime.now().strftime("%d %B %Y, %H:%M").lstrip("0")
    html = environment.get_template(template).render(css=css, version=__version__, now=now, **values)
    atomic_write(path, html.encode("utf-8", "replace"))
    return path
