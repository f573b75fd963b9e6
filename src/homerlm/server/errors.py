"""Errors as clients of OpenAI's API know them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from homerlm import errors

RETRY_AFTER_S = 5


class ErrorFacts(BaseModel):
    """type: OpenAI's word for the kind of error; param: the part of the request that is at fault; code: a word that
    programs can go by."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorObject(BaseModel):
    """What every error is told as."""

    error: ErrorFacts


RESPONSES: dict[int | str, dict[str, Any]] = {  # of every endpoint, for the OpenAPI document
    "4XX": {"model": ErrorObject, "description": "The request is at fault, or comes too early (429)."},
    "5XX": {"model": ErrorObject, "description": "The server is at fault, or has no room, memory or time."},
}
_log = logging.getLogger("homerlm.server")
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_CODES = {405: "method_not_allowed", 413: "request_too_large"}
_STATUS: dict[type[Exception], tuple[int, str]] = {  # the first that fits
    errors.Busy: (429, "server_busy"),
    errors.Stopped: (503, "server_stopping"),
    errors.Unreachable: (503, "store_unreachable"),
    errors.Cancelled: (503, "cancelled"),
    errors.OutOfMemoryError: (503, "out_of_memory"),
    errors.NumericalError: (500, "numerical_error"),
    errors.ScheduleError: (400, "context_length_exceeded"),
    errors.QuotaError: (413, "quota_exceeded"),
    errors.DocumentError: (400, "unreadable_document"),
    errors.MismatchError: (409, "mismatch"),
    errors.ConfigError: (400, "invalid_value"),
    errors.InputError: (400, "invalid_value"),
}


class ApiError(Exception):
    """A request that gets an error for an answer. param: the part of the request that is at fault; code: a word that
    programs can go by; headers: of the response."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        message = message.encode("utf-8", "replace").decode()  # it may quote lone surrogates, which no JSON can hold
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        """OpenAI's word for the kind of error."""
        return _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        """The JSON object that clients get."""
        facts = ErrorFacts(message=self.message, type=self.type, param=self.param, code=self.code)
        return ErrorObject(error=facts).model_dump()


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of any error: the library's own messages as they are, of any other only that there was
    one."""
    if isinstance(error, ApiError):
        return error
    for kind, (status, code) in _STATUS.items():
        if isinstance(error, kind):
            headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else {}
            return ApiError(status, str(error), code=code, headers=headers)
    return ApiError(500, "The server failed on this request; its log says why.", code="internal_error")


def logged(error: BaseException) -> ApiError:
    """`as_api_error`, with the traceback of what nobody expected in the log: the places in the code, not the message,
    which may quote the request."""
    told = as_api_error(error)
    if told.status == 500:
        places = _places(error)
        _log.error("request failed: %s at %s", type(error).__name__, places)
    return told


def add_handlers(app: FastAPI) -> None:
    """Let every error of an app's requests become JSON in OpenAI's shape."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    for kind in (ApiError, errors.HomerError, Exception):
        app.add_exception_handler(kind, _failed)


def response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


async def _failed(_request: Request, error: Exception) -> JSONResponse:
    return response(logged(error))


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    deepest = max(error.errors(), key=lambda one: len(one["loc"]))  # of a union, the branch that fits best
    kind, param = str(deepest["type"]), _param(deepest, error.body)
    message = str(deepest["msg"]).removeprefix("Value error, ")
    if kind == "json_invalid":
        param, message = None, f"The body is no JSON: {deepest['ctx']['error']} at character {deepest['loc'][-1]}."
    elif param is not None:
        message = f"{param}: {message}"
    elif kind in ("missing", "model_attributes_type"):
        message = "The body is no JSON object. Send one, with the header Content-Type: application/json."
    return response(ApiError(400, message, code=kind, param=param))


def _param(error: Mapping[str, Any], body: Any) -> str | None:
    """The part of a request that is at fault, as the client named it: a place holds names of our types, too."""
    source, *place = error["loc"]
    if source != "body" or not isinstance(body, dict):
        return ".".join(map(str, place)) or None
    names, value = [], body
    for number, name in enumerate(place, 1):
        held = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        if name in held:
            value = value[name]
        elif error["type"] != "missing" or number < len(place):
            continue
        names.append(str(name))
    return ".".join(names) or None


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if "route" not in request.scope and error.status_code == 404:
        message = f"Unknown request URL: {request.method} {request.url.path[:200]}. /openapi.json lists what there is."
        return response(ApiError(404, message, code="unknown_url"))
    if isinstance(error.__cause__, OSError):  # where the parts of a body are written to while they come
        return response(ApiError(507, "The server's disk cannot take this request.", code="disk_full"))
    if error.status_code == 400 and isinstance(error.__cause__, ValueError | RecursionError):
        message = "The body cannot be read: send JSON in UTF-8, without deep nesting or numbers of thousands of digits."
        return response(ApiError(400, message, code="json_invalid"))
    code = "not_found" if error.status_code == 404 else _CODES.get(error.status_code)
    headers = error.headers or {}
    return response(ApiError(error.status_code, str(error.detail), code=code, headers=headers))


def _places(error: BaseException) -> str:
    """File names and lines of a traceback's last frames."""
    places = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " > ".join(places[-8:]) or "unknown place"
