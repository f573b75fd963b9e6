"""What all requests of one server share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from homerlm.conversation.messages import Reader
from homerlm.engine import Engine
from homerlm.model.identity import model_name
from homerlm.server.errors import ApiError
from homerlm.server.kept_answers import KeptAnswers
from homerlm.server.keys import owner
from homerlm.server.metrics import Metrics
from homerlm.server.remembered import Memory
from homerlm.server.settings import Settings
from homerlm.store.documents import Documents
from homerlm.store.parsing import Parser

Owner = Annotated[str, Depends(owner)]


@dataclass(frozen=True)
class Server:
    """room: tokens of a conversation that are sent to the model as they are."""

    settings: Settings
    engine: Engine
    documents: Documents
    metrics: Metrics
    reader: Reader
    room: int
    memory: Memory
    parser: Parser = field(default_factory=Parser)
    kept: KeptAnswers = field(default_factory=KeptAnswers)
    started: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, settings: Settings, engine: Engine, documents: Documents) -> Server:
        homer = engine.homer
        room = homer.lengths.target_len
        assert homer.tokenizer is not None  # the engine refuses a Homer without one
        memory = Memory(settings.max_responses, settings.response_bytes, settings.response_seconds)
        return cls(settings, engine, documents, Metrics(), Reader.of(homer.tokenizer, room), room, memory)

    @property
    def name(self) -> str:
        """What clients call the model."""
        if self.settings.name is not None:
            return self.settings.name
        model = self.engine.homer.model
        known = model_name(model) or type(model).__name__
        return Path(known).name if Path(known).exists() or Path(known).is_absolute() else known

    def check_tokens(self, tokens: int, what: str, param: str) -> None:
        """Raise `ApiError` where `what` has more tokens than this server takes."""
        most = self.settings.max_prompt_tokens
        if tokens > most:
            message = f"The {what} has {tokens:,} tokens; this server takes {most:,} at most."
            raise ApiError(400, message, code="context_length_exceeded", param=param)

    def check_model(self, given: str | None) -> str:
        """The model's name. Raises `ApiError` 404 for a request to another one."""
        name = self.name
        if given not in (None, "", name, name.rsplit("/", 1)[-1], "default"):
            raise ApiError(
                404,
                f"The model `{given}` does not exist here: this server runs `{name}`.",
                code="model_not_found",
                param="model",
            )
        return name


def server(request: Request) -> Server:
    """A dependency: what the requests of this server share."""
    shared: Server = request.app.state.server
    return shared


Shared = Annotated[Server, Depends(server)]
