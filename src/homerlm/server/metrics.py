"""What the server counts, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180, 600, 1800)
router = APIRouter()


class Metrics:
    """The numbers of one server; nothing of what requests hold."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("homer_requests", "Requests answered", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "homer_request_seconds", "Time of a request", ["route"], buckets=SECONDS, registry=self.registry
        )
        self.running = Gauge("homer_requests_running", "Requests that are being answered", registry=self.registry)
        self.tokens = Counter("homer_tokens", "Tokens of prompts and answers", ["kind"], registry=self.registry)
        for kind in ("prompt", "cached", "read", "kept", "completion"):
            self.tokens.labels(kind)


@router.get("/metrics", include_in_schema=True, response_class=Response)
def metrics(request: Request) -> Response:
    """Numbers of this server, in Prometheus' text format."""
    shared: Metrics = request.app.state.server.metrics
    return Response(generate_latest(shared.registry), media_type=CONTENT_TYPE_LATEST)
