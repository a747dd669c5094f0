"""The chat page at `/`: a few static files, read once, with their types, tags and a strict policy.

Nothing on it comes from elsewhere and no script or style is inline, so the policy can forbid everything else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page/chat.js": ("chat.js", "text/javascript; charset=utf-8"),
    "/page/server.js": ("server.js", "text/javascript; charset=utf-8"),
    "/page/markdown.js": ("markdown.js", "text/javascript; charset=utf-8"),
    "/favicon.ico": ("icon.svg", "image/svg+xml"),
}


@dataclass(frozen=True)
class Asset:
    """One file as it is sent."""

    body: bytes
    content_type: str
    etag: str
    csp: str = CSP


@cache
def asset(path: str) -> Asset | None:
    """The file at a path; None if there is none."""
    if path not in _FILES:
        return None
    name, content_type = _FILES[path]
    body = resources.files(__package__).joinpath(name).read_bytes()
    return Asset(body, content_type, f'"{hashlib.sha256(body).hexdigest()[:16]}"')
