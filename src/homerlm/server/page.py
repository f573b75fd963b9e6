"""`/`: the web page, from files of the package alone."""

from __future__ import annotations

from importlib import resources

from fastapi import APIRouter, HTTPException, Response

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES = {one.name: one.read_bytes() for one in resources.files("homerlm.server").joinpath("static").iterdir()}

router = APIRouter(include_in_schema=False)


@router.get("/")
def page() -> Response:
    return _file("index.html")


@router.get("/static/{name}")
def static(name: str) -> Response:
    if name not in _FILES:
        raise HTTPException(404, "There is no such file.")
    return _file(name)


def _file(name: str) -> Response:
    headers = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
    kind = TYPES[name[name.rindex(".") :]]
    return Response(_FILES[name], media_type=f"{kind}; charset=utf-8", headers=headers)
