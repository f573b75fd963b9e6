"""Options that commands share, those of the configs made from the configs' own fields."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from dataclasses import Field
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from homerlm.cli.devices import DType
from homerlm.cli.errors import UsageError
from homerlm.config import PRESETS, HomerConfig, flag, kind_of, public_fields
from homerlm.formatting import count_of

PRESET_HELP = "default answers best; paper is the published method exactly."
PANEL = "HOMER"

Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Hub name, folder or .gguf file; default the small bundled model.", show_default=False
    ),
]
Given = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE... QUESTION",
        help="Documents, folders or globs (- is standard input), then the question.",
        show_default=False,
    ),
]
Question = Annotated[
    str | None, typer.Option("--question", "-q", help="The question; all arguments are documents then.")
]
Device = Annotated[
    str | None, typer.Option(help="Where the model runs: cpu, cuda, cuda:1, mps ..., or auto for all devices.")
]
Numbers = Annotated[DType, typer.Option(help="Numbers of the model; auto takes the checkpoint's own.")]
Password = Annotated[str | None, typer.Option(help="Password of encrypted PDFs.", show_default=False)]
Chat = Annotated[
    bool | None, typer.Option("--chat/--no-chat", help="Use the model's chat template; default where it has one.")
]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=JSON", help="For the chat template: enable_thinking=true. May be repeated."),
]
Rope = Annotated[str | None, typer.Option(help="Stretch the model's limit: pi:2, ntk:4, yarn:2 ...")]
CalibrationFile = Annotated[
    Path | None, typer.Option(help="Calibration file, for the scores that need one (`homer calibrate`).")
]
ProfileFile = Annotated[
    Path | None,
    typer.Option(
        help="Profile of the model's heads (`homer profile`), for the default preset. Default: the one that ships, was "
        "measured before, or is measured now.",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace output files that exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors, nothing else.")]


def parse_counts(text: str, name: str) -> list[int]:
    """`8k, 16384, 1M` as numbers; raises `UsageError` naming the argument."""
    return [parse_tokens(item, name) for item in text.replace(",", " ").split() or [text]]


def parse_tokens(text: str, name: str, least: int = 1) -> int:
    """`8192`, `8k` or `1M` as a number of tokens; raises `UsageError` naming the argument."""
    with suppress(ValueError):
        if (count := count_of(text)) >= least:
            return count
    raise UsageError(f"{name} is {text!r}; it must be a count such as 8192 or 8k, of at least {least:,}")


def template_options(given: Iterable[str], chat: bool | None) -> dict[str, Any]:
    """`homer.ask`'s keyword for `--template-option KEY=JSON`, empty without any. Raises `UsageError`."""
    options: dict[str, Any] = {}
    for item in given:
        key, equals, value = item.partition("=")
        try:
            options[key] = json.loads(value)
        except ValueError:
            equals = ""
        if not equals or not key.isidentifier():
            raise UsageError(
                f"--template-option is {item!r}; it must be KEY=JSON, such as enable_thinking=true or 'effort=\"low\"'"
            )
    if options and chat is False:
        raise UsageError(
            "--template-option is for the chat template, which --no-chat leaves out: leave out one of them"
        )
    return {"template_options": options} if options else {}


def config_fields() -> dict[str, list[Field[Any]]]:
    """The presets' settings by name, each with its field in every preset that has it."""
    found: dict[str, list[Field[Any]]] = {}
    for config in PRESETS.values():
        for setting in public_fields(config):
            found.setdefault(setting.name, []).append(setting)
    return found


def with_config(command: Callable[..., None], without: Container[str] = ()) -> Callable[..., None]:
    """Give a command that takes `settings` the option `--preset` and one option per setting of any preset, but those
    it goes `without`, and `--profile`.

    `settings` is the chosen preset with the options that were given, without calibration.
    """
    settings = {name: found for name, found in config_fields().items() if name not in without}

    @wraps(command)
    def wrapper(**given: Any) -> None:
        preset, profile = given.pop("preset"), given.pop("profile")
        changes = {name: value for name in settings if (value := given.pop(name)) is not None}
        changes = {name: str(value) if isinstance(value, StrEnum) else value for name, value in changes.items()}
        if profile is not None:
            changes["profile"] = _profile(profile)
        command(**given, settings=PRESETS[preset](**changes))

    parameters = dict(inspect.signature(command, eval_str=True).parameters)
    del parameters["settings"]
    chosen = typer.Option(help=PRESET_HELP, rich_help_panel=PANEL)
    parameters["profile"] = option("profile", ProfileFile, None)
    parameters["preset"] = option("preset", Annotated[_choice("Preset", PRESETS), chosen], HomerConfig.preset)
    for name, found in settings.items():
        parser = _count if kind_of(found[0]) is int else None
        one = typer.Option(flag(name), help=_help(found), rich_help_panel=PANEL, show_default=False, parser=parser)
        parameters[name] = option(name, Annotated[_type(found) | None, one], None)
    return with_parameters(wrapper, parameters.values())


def with_parameters(command: Callable[..., None], parameters: Iterable[inspect.Parameter]) -> Callable[..., None]:
    """Give a command these parameters, which typer makes its options of."""
    signature = inspect.Signature(list(parameters))
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return command


def _profile(path: Path) -> Any:
    from homerlm.score.profile import Profile

    return Profile.load(path)


def option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """A parameter for `with_parameters`."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _type(found: list[Field[Any]]) -> Any:
    """The option's type; the choices are those of all presets, and the chosen one refuses what is not its own."""
    choices = [name for field in found for name in field.metadata.get("choices") or ()]
    return _choice(found[0].name, choices) if choices else kind_of(found[0])


def _count(text: str) -> int:
    try:
        return count_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _choice(name: str, choices: Iterable[str]) -> Any:
    return StrEnum(name, {choice: choice for choice in choices})


def _help(found: list[Field[Any]]) -> str:
    """A setting's text and its default in every preset that has it, by the preset's name where that is not the usual
    one's too."""
    text, (usual, *others) = found[0].metadata["help"], [field.default for field in found]
    if found[0].name not in HomerConfig.__dataclass_fields__:
        text = f"With --preset paper: {text[:1].lower()}{text[1:]}"
    if usual is not None:
        text += f" Default {usual}."
    return text + "".join(f" With --preset paper {other}." for other in others if other != usual)
