"""`/v1/models`, and whether the server is well."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from homerlm.server.state import Owner, Server, Shared

router = APIRouter(tags=["Models"])


@router.get("/v1/models")
@router.get("/v1/models/", include_in_schema=False)
def models(_owner: Owner, server: Shared) -> dict[str, Any]:
    """The one model of this server."""
    return {"object": "list", "data": [_model(server)]}


@router.get("/v1/models/{name:path}")
def model(name: str, _owner: Owner, server: Shared) -> dict[str, Any]:
    server.check_model(name)
    return _model(server)


@router.get("/health", tags=["Server"])
def health() -> dict[str, str]:
    """That the server answers."""
    return {"status": "ok"}


def _model(server: Server) -> dict[str, Any]:
    homer = server.engine.homer
    facts = {"limit": homer.limit, "target": server.room, "longest_prompt": server.settings.max_prompt_tokens}
    return {"id": server.name, "object": "model", "created": server.started, "owned_by": "homerlm", "homer": facts}
