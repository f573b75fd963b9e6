"""What chat, completions and responses let a client set, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from homerlm.server.errors import ApiError
from homerlm.writing import Writing


def whole_characters(text: str) -> str:
    """Refuse lone surrogates, which JSON can name and no text can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds characters that are none (lone surrogates)") from None
    return text


Words = Annotated[str, AfterValidator(whole_characters)]
Stop = Annotated[list[Words], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)]
MOST_STOPS, MOST_LOGPROBS = 64, 20


class Body(BaseModel):
    """Fields that nobody knows are ignored, as OpenAI does."""

    model_config = ConfigDict(extra="ignore")


class StreamOptions(Body):
    include_usage: bool | None = None


class Sampling(Body):
    """How an answer is drawn. Greedy where nothing is said."""

    model: Words | None = None
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)

    def writing(self, max_new_tokens: int | None, **more: Any) -> Writing:
        """max_new_tokens: None for as many as the server and the model allow."""
        return Writing(
            max_new_tokens=max_new_tokens or 1 << 30,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            **more,
        )


class Generation(Sampling):
    """What chat and completions have in common."""

    max_tokens: int | None = Field(None, ge=1)
    stop: Stop | None = Field(None, max_length=MOST_STOPS)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, ge=1, le=128)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_progress: bool | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def refuse(self) -> Self:
        """Raise `ApiError` for what would change the answer and is not done here."""
        if (self.n or 1) > 1:
            raise unsupported("n", "one answer to a request: send it several times")
        for name in ("frequency_penalty", "presence_penalty", "logit_bias"):
            if getattr(self, name):
                raise unsupported(name, "the model's own probabilities: leave it out")
        if any(not text for text in self.stop or ()):
            raise ApiError(400, "stop holds an empty text, which is everywhere.", code="invalid_value", param="stop")
        return self


def unsupported(param: str, instead: str) -> ApiError:
    """The error for a parameter that would change the answer. instead: what this server does."""
    message = f"{param} is not supported here; this server gives {instead}."
    return ApiError(400, message, code="unsupported_parameter", param=param)


def refuse_tools(choice: Any, names: Iterable[str] = ("auto", "none")) -> None:
    """Raise `ApiError` where an answer must be a call of a tool."""
    if choice is not None and choice not in names:
        raise unsupported("tool_choice", "answers in text, and calls no tools: set it to auto or none")


def refuse_format(given: Any, param: str) -> None:
    """Raise `ApiError` where an answer must have a form."""
    kind = given.get("type") if isinstance(given, dict) else given
    if kind not in (None, "text"):
        raise unsupported(param, "answers in plain text: leave it out, and ask for the form in words")
