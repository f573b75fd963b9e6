"""Every error that a user's mistake can raise. Each message names the field, the value, the allowed range, the fix."""

from __future__ import annotations

from collections.abc import Iterator


class HomerError(Exception):
    """Base of all errors raised on purpose by homerlm."""


class ConfigError(HomerError, ValueError):
    """A setting is outside its range, or two settings contradict each other."""


class ScheduleError(HomerError, ValueError):
    """The prompt cannot be cut into a valid tree with these lengths and layers."""


class InputError(HomerError, ValueError):
    """Token ids, a document or a question cannot be used as given."""


class UnsupportedModelError(HomerError, TypeError):
    """The architecture cannot run HOMER; the message names the reason."""


class ModelLoadError(HomerError, OSError):
    """A model or tokenizer could not be found or loaded."""


class DocumentError(HomerError, ValueError):
    """A document cannot be read as text."""


class MismatchError(HomerError, ValueError):
    """A saved context or calibration belongs to something else; the message holds both values."""


class CorruptFileError(HomerError, ValueError):
    """A saved file is damaged, truncated or not of this format."""


class NumericalError(HomerError, ArithmeticError):
    """NaN or infinity came out of the model."""


class OutOfMemoryError(HomerError, MemoryError):
    """The device ran out of memory; the message says what was asked and what to lower."""


class EndpointError(HomerError):
    """A server that was to answer cannot be used. `status`: of its HTTP response, None without one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Cancelled(HomerError):
    """Work was stopped by its caller; nothing is half done."""


class QuotaError(HomerError):
    """There is no room for what was to be kept; the message says whose limit it is."""


class Busy(HomerError):
    """More work waits already than is accepted: try again later."""


class Unreachable(HomerError):
    """What is needed is on another machine, and that does not answer as it should: try again later."""


class Stopped(HomerError):
    """The engine was closed before this work was done."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it came from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
