"""The page at `/` and its files. Paths are found where this module lies, which on a replica is the replica's own."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, HTTPException, Response

HERE = Path(__file__).parent
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
FILES = frozenset(path.name for path in HERE.iterdir() if path.suffix in TYPES)
"""What may be asked for by name; a name that is not among them is never made a path."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

router = APIRouter(include_in_schema=False)


@router.get("/")
def index() -> Response:
    """The page."""
    return asset("index.html")


@router.get("/page/{name}")
def asset(name: str) -> Response:
    """One of the page's files.

    Raises:
        HTTPException: 404, no such file.
    """
    if name not in FILES:
        raise HTTPException(404)
    path = HERE / name
    media = f"{TYPES[path.suffix]}; charset=utf-8"
    return Response(path.read_bytes(), media_type=media, headers=HEADERS)
