"""The chat page as one self-contained document, and the policy that lets it run nothing but its own script."""

import base64
import hashlib
from importlib.resources import files

ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><path d="M7 4h13l7 7v14a3 3 0 0 1-3 3H7a3 3 0 0 1-3-3V7'
    'a3 3 0 0 1 3-3z" fill="#0e7c6b"/><path d="M20 4l7 7h-5a2 2 0 0 1-2-2z" fill="#8fe0cf"/>'
    '<path d="M9.500 22.500 17 12.500l5.500 10z" fill="#fff" fill-opacity=".92"/></svg>'
)


def build() -> tuple[str, str]:
    """The page's HTML, with style and scripts put in, and its Content-Security-Policy."""
    folder = files("onefold.serve")
    style = (folder / "page.css").read_text("utf-8")
    script = "\n".join((folder / name).read_text("utf-8") for name in ("markdown.js", "page.js"))
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
