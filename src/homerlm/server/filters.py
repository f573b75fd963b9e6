"""Which of a vector store's files are searched: conditions on their attributes, as OpenAI's clients write them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from homerlm.server.errors import ApiError

Value = str | bool | int | float
DEEPEST = 8  # conditions within conditions
_ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


class Comparison(BaseModel):
    """A condition on one attribute. A file without it meets only `ne` and `nin`."""

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"]
    key: str = Field(max_length=64)
    value: Value | Annotated[list[Value], Field(max_length=1000)]

    def matches(self, attributes: Mapping[str, Value]) -> bool:
        """Whether a file with these attributes is searched."""
        found = attributes.get(self.key)
        if self.type in ("eq", "ne"):
            return _equal(found, self.value) is (self.type == "eq")
        if self.type in ("in", "nin"):
            values = self.value if isinstance(self.value, list) else [self.value]
            return any(_equal(found, value) for value in values) is (self.type == "in")
        return _comparable(found, self.value) and _ORDERED[self.type](found, self.value)


class Compound(BaseModel):
    """All of some conditions, or any of them."""

    type: Literal["and", "or"]
    filters: list[Filter] = Field(max_length=100)

    def matches(self, attributes: Mapping[str, Value]) -> bool:
        """Whether a file with these attributes is searched."""
        met = (one.matches(attributes) for one in self.filters)
        return all(met) if self.type == "and" else any(met)


def _kind(given: Any) -> str:
    kind = given.get("type") if isinstance(given, dict) else getattr(given, "type", None)
    return "compound" if kind in ("and", "or") else "comparison"


Filter = Annotated[
    Annotated[Comparison, Tag("comparison")] | Annotated[Compound, Tag("compound")], Discriminator(_kind)
]


def check(given: Filter | None, param: str) -> None:
    """Raise `ApiError` for too many conditions within each other."""
    if given is not None and _depth(given) > DEEPEST:
        raise ApiError(400, f"More than {DEEPEST} filters within each other.", code="invalid_value", param=param)


def _depth(given: Filter) -> int:
    """How many conditions stand within each other."""
    return 1 + max(map(_depth, given.filters), default=0) if isinstance(given, Compound) else 1


def _equal(found: Any, value: Any) -> bool:
    return isinstance(found, bool) == isinstance(value, bool) and found == value


def _comparable(found: Any, value: Any) -> bool:
    numbers = [isinstance(one, int | float) and not isinstance(one, bool) for one in (found, value)]
    return all(numbers) or (isinstance(found, str) and isinstance(value, str))
