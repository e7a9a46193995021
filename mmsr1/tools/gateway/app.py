"""The gateway as an ASGI app, made of tools and plain arguments: one cache, budget and set of keys for many machines.

POST /retrieve, /retrieve_image    the searches (see `wire`)
GET  /healthz                      whether it serves, which version, in front of what; needs no token
GET  /metrics                      Prometheus
     /mcp                          both searches as tools of the Model Context Protocol, where asked for
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mmsr1.tools.base import Tool
from mmsr1.tools.gateway.limits import OPEN, Gate
from mmsr1.tools.gateway.metrics import Metrics
from mmsr1.tools.gateway.service import MOST_QUERIES, Service
from mmsr1.tools.gateway.wire import ImageRequest, Refused, TextRequest, as_json, image_answer, text_answer
from mmsr1.tools.meter import Row
from mmsr1.tools.secrets import Secret
from mmsr1.types import ToolName

MIB = 2**20
WAIT_S = 10.0  # less than the clients wait that are known: 30 s
REQUESTS = 4  # times the searches at a time: requests that may be waiting or at work


@dataclass(frozen=True)
class Settings:
    """`backends` are who is asked, by part, for /healthz: names alone; `version` is ours. `in_flight` searches are at
    work at a time; a request waits `wait_s` for a place. `token` is what every request must carry. `host` is where it
    listens.

    Raises ValueError for a number that is not positive.
    """

    backends: Mapping[str, str] = field(default_factory=dict)
    max_body: int = 16 * MIB
    in_flight: int = 256
    wait_s: float = WAIT_S
    token: Secret | None = None
    mcp: bool = False
    host: str = "127.0.0.1"
    version: str = ""

    def __post_init__(self) -> None:
        for name in ("max_body", "in_flight", "wait_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive")


def create_app(
    tools: Mapping[ToolName, Tool[Any]], rows: Callable[[], Mapping[str, Row]], settings: Settings
) -> FastAPI:
    """The app; `rows` are the figures of the tools and their parts. `app.state` has its `metrics` and `service`.

    Raises ValueError where the MCP face is asked for and cannot be had.
    """
    service = Service(tools, settings.in_flight, settings.wait_s)
    metrics = Metrics(rows, lambda: service.at_work)
    entered: list[Callable[[], Any]] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for enter in entered:
                await stack.enter_async_context(enter())
            yield

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan, redirect_slashes=False)
    app.state.metrics, app.state.service = metrics, service
    routes = ["/retrieve", "/retrieve_image", OPEN, "/metrics"]
    _add_searches(app, service)
    _add_figures(app, metrics, settings)
    if settings.mcp:
        from mmsr1.tools.gateway.mcp_face import mcp_face

        face = mcp_face(service, settings.host, settings.max_body, settings.version)
        app.router.routes.extend(face.routes)
        entered.append(face.running)
        routes.append("/mcp")
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_exception_handler(HTTPException, _http_error)
    most = REQUESTS * settings.in_flight
    app.add_middleware(
        Gate, metrics=metrics, routes=routes, max_body=settings.max_body, most=most, token=settings.token
    )
    return app


def _add_searches(app: FastAPI, service: Service) -> None:
    @app.post("/retrieve")
    async def retrieve(asked: TextRequest) -> Response:
        queries = asked.asked
        _check_number(len(queries))
        for number, query in enumerate(queries, 1):
            if not query.strip():
                raise Refused(400, "invalid", f"query {number} of {len(queries)} is empty")
        return text_answer(await service.search("text_search", queries), asked)

    @app.post("/retrieve_image")
    async def retrieve_image(asked: ImageRequest) -> Response:
        _check_number(len(asked.images))
        pictures = [await service.picture(encoded) for encoded in asked.images]
        results = await service.search("image_search", pictures)
        # Thumbnails of a batch are megabytes of base64.
        return await asyncio.to_thread(image_answer, results, asked)


def _add_figures(app: FastAPI, metrics: Metrics, settings: Settings) -> None:
    @app.get(OPEN)
    async def healthz() -> Response:
        return as_json({"ready": True, "version": settings.version, "backends": dict(settings.backends)})

    @app.get("/metrics")
    async def figures() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _check_number(queries: int) -> None:
    if queries > MOST_QUERIES:
        raise Refused(413, "invalid", f"{queries} queries in a request; send at most {MOST_QUERIES}")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return error.response()


async def _not_understood(request: Request, error: Exception) -> Response:
    """Another protocol is spoken, which no other query would change. What was sent is not repeated."""
    assert isinstance(error, RequestValidationError)
    if "json" not in request.headers.get("content-type", "").lower():
        return Refused(415, "refused", "send the body as Content-Type: application/json").response()
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return Refused(422, "refused", f"{place}: {' '.join(str(first['msg']).split())}").response()


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Refused(error.status_code, "refused", str(error.detail)).response()
