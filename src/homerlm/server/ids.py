"""Ids of answers. Where several replicas serve, an id ends with the route by which a request for it finds its way."""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar

ROUTE_LEN = 12  # hexadecimal digits
ROUTE: ContextVar[str] = ContextVar(
    "route", default=""
)  # of the request that is answered; "" where there is one server
_ROUTED = re.compile(rf"[a-z]+[_-](?:[0-9a-f]{{24}}|[0-9a-f]{{32}})([0-9a-f]{{{ROUTE_LEN}}})")


def token(length: int) -> str:
    """Random hexadecimal digits of so many bytes, with the request's route behind them."""
    return secrets.token_hex(length) + ROUTE.get()


def route_in(id: str) -> str | None:
    """The route in an answer's id; None where it has none."""
    found = _ROUTED.fullmatch(id)
    return None if found is None else found[1]
