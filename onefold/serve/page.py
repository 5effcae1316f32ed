"""The chat page as one self-contained document, and the policy that lets it run nothing but its own script."""

import base64
import hashlib
from importlib.resources import files


def build() -> tuple[str, str]:
    """The page's HTML, with style and scripts put in, and its Content-Security-Policy."""
    folder = files("onefold.serve")
    style = (folder / "page.css").read_text("utf-8")
    script = "\n".join(
        (folder / name).read_text("utf-8") for name in ("markdown.js", "client.js", "settings.js", "page.js")
    )
    html = (folder / "page.html").read_text("utf-8")
    html = html.replace("/*style*/", style).replace("/*script*/", script)
    policy = {
        "default-src": "'none'",
        "script-src": _digest(script),
        "style-src": _digest(style),
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return html, "; ".join(f"{name} {value}" for name, value in policy.items())


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
