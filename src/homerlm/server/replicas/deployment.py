"""The server as deployments of Ray Serve: one that clients reach, and replicas that hold the model.

Requests that belong together (`routing`) have one place on Ray Serve's consistent hash ring, so that a replica which
ends takes no other's documents along. Ray starts another one in its place, and more where requests wait.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

from prometheus_client import generate_latest
from ray import exceptions, serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import BackPressureError
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount
from starlette.types import Message

from homerlm.errors import Busy
from homerlm.homer import Homer
from homerlm.model.threads import leave_threads_to_model
from homerlm.server.app import opened_app
from homerlm.server.door import Door
from homerlm.server.metrics import Metrics
from homerlm.server.replicas.bridge import answering
from homerlm.server.replicas.front import Front, lost
from homerlm.server.replicas.metrics import summed
from homerlm.server.settings import Settings

NAME = "homer"  # of the application, and of what holds the model
LOST = (exceptions.RayActorError, exceptions.NodeDiedError, exceptions.OutOfMemoryError)
QUEUE_SHARE = 2  # one part in so many of `streams`: so many requests of a replica ask for another one


@dataclass(frozen=True)
class Replicas:
    """least, most: how many there are, by the number of requests that wait; cpus, gpus: of the machine, for each."""

    least: int
    most: int
    cpus: float = 1.0
    gpus: float = 0.0


class Replica:
    """The whole server in one process, without a port. load: gives its model; settings: those of `Settings`."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, load: Callable[[], Homer], settings: dict[str, Any]
    ) -> None:
        given = Settings.of(**settings)
        logging.getLogger("homerlm").setLevel(logging.INFO)
        threads = leave_threads_to_model()
        self._app = opened_app(load(), given, threads)
        self._life = AsyncExitStack()
        await self._life.enter_async_context(self._app.router.lifespan_context(self._app))

    async def answer(self, scope: dict[str, Any], body: bytes, route: str) -> AsyncGenerator[Message, None]:
        """The application's messages; cancelling this stops the work for them."""
        async with aclosing(answering(self._app, scope, body, route)) as messages:
            async for message in messages:
                yield message

    async def metrics(self) -> str:
        """As the server without replicas tells them."""
        return generate_latest(self._app.state.server.metrics.registry).decode()

    async def __del__(self) -> None:
        await self._life.aclose()
        self._app.state.documents.store.close()


def front(settings: dict[str, Any], most: int, replicas: DeploymentHandle[Any]) -> Starlette:
    """The application that clients reach."""
    given = Settings.of(**settings)
    keys = given.keys()

    async def send(scope: dict[str, Any], body: bytes, route: str) -> AsyncGenerator[Message, None]:
        messages = replicas.options(stream=True, session_id=route).answer.remote(scope, body, route)
        try:
            async for message in messages:
                yield message
        except LOST as error:
            raise lost() from error
        except BackPressureError as error:
            raise Busy("too many requests wait already: try again later") from error
        finally:
            messages.cancel()

    async def metrics() -> str:
        return summed(await replicas.broadcast("metrics").results_async())

    whole = given.model_copy(update={"streams": given.streams * most, "waiting": given.waiting * most})
    door = Middleware(Door, settings=whole, keys=keys, metrics=Metrics())  # type: ignore[arg-type]
    return Starlette(routes=[Mount("/", Front(keys, send, metrics))], middleware=[door])


@serve.deployment(name="front", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1 << 14)
@serve.ingress()
class FrontDeployment:
    """See `front`."""

    def __init__(self, settings: dict[str, Any], most: int, replicas: DeploymentHandle[Any]) -> None:
        self._given = settings, most, replicas

    def __serve_build_asgi_app__(self) -> Starlette:
        return front(*self._given)


def deployed(load: Callable[[], Homer], settings: Settings, replicas: Replicas) -> serve.Application:
    """What `serve.run` runs."""
    given = settings.model_dump()
    most = settings.streams + settings.waiting
    scaling = AutoscalingConfig(
        min_replicas=replicas.least,
        max_replicas=replicas.most,
        initial_replicas=replicas.least,
        target_ongoing_requests=max(settings.streams / QUEUE_SHARE, 1),
    )
    number: dict[str, Any] = {"num_replicas": replicas.least}
    if replicas.most > replicas.least:
        number = {"autoscaling_config": scaling}
    holding = serve.deployment(
        Replica,
        name=NAME,
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        max_ongoing_requests=most,
        max_queued_requests=most,
        graceful_shutdown_timeout_s=settings.closing_seconds,
        request_router_config=RequestRouterConfig(
            request_router_class=ConsistentHashRouter,
            request_router_kwargs={"num_fallback_replicas": 0},  # another one does not remember its answers
        ),
        **number,
    )
    front_deployment: Any = FrontDeployment
    return front_deployment.bind(given, replicas.most, holding.bind(load, given))
