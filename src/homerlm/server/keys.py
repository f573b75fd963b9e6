"""Who asks: API keys, of which only hashes are kept."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import Request, Security
from fastapi.security import HTTPBearer

from homerlm.server.errors import ApiError

LOCAL = "local"  # the owner of everything where no keys are asked for
_OWNER_LEN = 16
_BEARER = HTTPBearer(auto_error=False, description="An API key, where the server has any.")


class Keys:
    """The keys that are accepted, as SHA-256 hashes; none lets everybody in, as one owner."""

    def __init__(self, keys: Iterable[str] = (), hashes: Iterable[str] = ()) -> None:
        self._hashes = (*map(hash_of, keys), *(known.lower() for known in hashes))

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def owner(self, authorization: str | None) -> str:
        """The owner that an `Authorization` header stands for. Raises `ApiError` 401."""
        if not self._hashes:
            return LOCAL
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _refused("You did not provide an API key: send it as `Authorization: Bearer KEY`.", "missing_api_key")
        given = hash_of(key.strip())
        matches = [hmac.compare_digest(given, known) for known in self._hashes]  # all of them: in constant time
        if not any(matches):
            raise _refused("Incorrect API key provided.", "invalid_api_key")
        return given[:_OWNER_LEN]


def hash_of(key: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def owner(request: Request, _described: Annotated[Any, Security(_BEARER)] = None) -> str:
    """A dependency: the owner of what a request makes and sees. Raises `ApiError` 401 without a key that is known."""
    keys: Keys = request.app.state.keys
    return keys.owner(request.headers.get("authorization"))


def _refused(message: str, code: str) -> ApiError:
    return ApiError(401, message, code=code, headers={"WWW-Authenticate": "Bearer"})
