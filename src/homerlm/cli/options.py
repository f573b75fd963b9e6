"""HomerConfig's fields as command-line options, made from the fields themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from homerlm.config import HomerConfig


class Preset(StrEnum):
    default = "default"
    paper = "paper"


PRESET_HELP = "default answers best; paper is the published method exactly."
PANEL = "HOMER"
CONFIG_FIELDS: list[Field[Any]] = [field for field in fields(HomerConfig) if "help" in field.metadata]

Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Hub name, folder or .gguf file; default the small bundled model.", show_default=False
    ),
]
Rope = Annotated[str | None, typer.Option(help="Stretch the model's limit: pi:2, ntk:4, yarn:2 ...")]
CalibrationFile = Annotated[
    Path | None, typer.Option(help="Calibration file, for the scores that need one (`homer calibrate`).")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def flag(field: Field[Any]) -> str:
    return "--" + field.name.replace("_", "-")


def with_config(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes `settings` the option `--preset` and one option per field of HomerConfig.

    `settings` is the chosen preset with the options that were given, a `HomerConfig` without calibration.
    """

    @wraps(command)
    def wrapper(**given: Any) -> None:
        preset = given.pop("preset")
        changes = {field.name: value for field in CONFIG_FIELDS if (value := given.pop(field.name)) is not None}
        changes = {name: str(value) if isinstance(value, StrEnum) else value for name, value in changes.items()}
        build = HomerConfig.paper if preset is Preset.paper else HomerConfig
        command(**given, settings=build(**changes))

    parameters = dict(inspect.signature(command, eval_str=True).parameters)
    del parameters["settings"]
    preset = Annotated[Preset, typer.Option(help=PRESET_HELP, rich_help_panel=PANEL)]
    parameters["preset"] = _parameter("preset", preset, Preset.default)
    for field in CONFIG_FIELDS:
        option = typer.Option(flag(field), help=_help(field), rich_help_panel=PANEL, show_default=False)
        parameters[field.name] = _parameter(field.name, Annotated[_type(field) | None, option], None)
    wrapper.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    wrapper.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return wrapper


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _type(field: Field[Any]) -> Any:
    if choices := field.metadata.get("choices"):
        return StrEnum(field.name, {name: name for name in choices})
    return float if isinstance(field.default, float) else int


def _help(field: Field[Any]) -> str:
    text = field.metadata["help"]
    return text if field.default is None else f"{text} Default {field.default}."
