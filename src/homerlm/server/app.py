"""The server's application: every route behind one door."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware

from homerlm import __version__
from homerlm.engine import Engine
from homerlm.homer import Homer
from homerlm.server import (
    answers,
    chat,
    compaction,
    completions,
    errors,
    files,
    kept,
    metrics,
    models,
    page,
    rerank,
    responses,
    vector_stores,
)
from homerlm.server.door import Door
from homerlm.server.keys import owner
from homerlm.server.settings import Settings
from homerlm.server.state import Server
from homerlm.store.documents import Documents

ANY_NUMBER = 1 << 30  # of work that waits: the door counts who comes in


def opened_app(homer: Homer, settings: Settings, threads: int | None = None) -> FastAPI:
    """The application that serves a model, with an engine (threads: as it has it) and the store of the settings, which
    `app.state` holds. Its end closes the engine; the store is the caller's to close."""
    store = settings.open_store()
    engine = Engine(homer, waiting=ANY_NUMBER, streams=settings.streams, threads=threads)
    return create_app(settings, engine, Documents(homer, engine, store, lifetime=settings.lifetime))


def create_app(settings: Settings, engine: Engine, documents: Documents) -> FastAPI:
    """The application that serves one engine's model. Its end closes the engine."""
    app = FastAPI(
        title="homerlm",
        version=__version__,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=errors.RESPONSES,
    )
    app.state.settings, app.state.engine, app.state.documents = settings, engine, documents
    app.state.keys = settings.keys()
    app.state.server = Server.of(settings, engine, documents)
    errors.add_handlers(app)
    for part in (page, models, chat, completions, responses, compaction, files, vector_stores, rerank, kept, answers):
        app.include_router(part.router)
    app.include_router(metrics.router, dependencies=[Depends(owner)])
    app.add_middleware(Door, settings=settings, keys=app.state.keys, metrics=app.state.server.metrics)
    if settings.cors_origin:  # outside of the door, whose refusals the pages read, too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origin),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "X-Request-Id"],
        )
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    yield
    await asyncio.shield(app.state.engine.close(0))  # no request runs any more
