"""`homer profile`: which attention heads of a model find what a question asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from homerlm.cli.console import err, out, print_json, reading, status
from homerlm.cli.devices import DType, check_device, placed
from homerlm.cli.options import Device, Force, Json, Numbers, Quiet
from homerlm.cli.outputs import check_outputs

EXAMPLES = """
Examples:

  homer profile Qwen/Qwen3-4B

  homer profile ./my-model -o my-model.json --device cuda
"""


def profile(
    model: Annotated[str, typer.Argument(help="Hub name, folder or .gguf file; `default` is the bundled model.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write (for --profile); default the cache, where it is found."),
    ] = None,
    texts: Annotated[int | None, typer.Option(min=4, help="Texts to read, a thousand tokens each.")] = None,
    device: Device = None,
    dtype: Numbers = DType.auto,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure a model's heads on planted facts; done by itself where an unknown model reads its first document."""
    check_outputs({"--output": output}, [model], force=force)
    check_device(device)
    silent = quiet or as_json
    with status("Loading the model", quiet=silent):
        from homerlm import load_model
        from homerlm.passes import Event, run_steps
        from homerlm.profiling.measure import COUNT, measuring

        loaded, tokenizer = load_model(None if model == "default" else model, dtype=str(dtype), **placed(device))
    with reading("Measuring", quiet=silent) as bar:

        def show(progress: Any) -> None:
            bar(Event(progress.read, progress.total))
            if progress.texts == 1 and not silent:
                err.print(f"about {progress.seconds:,.0f} s to go", style="dim")

        measured = run_steps(measuring(loaded, tokenizer, count=texts or COUNT), show)
    if output is None:
        output = measured.keep()
    else:
        measured.save(output)
    if as_json:
        print_json({"output": str(output), **measured.to_dict()})
        return
    if quiet:
        return
    out.print(_table(measured))
    if (early := measured.early) is not None:
        heads = ", ".join(map(str, early.heads))
        out.print(
            f"Above layer {early.layer} only the {early.share:.0%} of a chunk that heads {heads} find goes on; "
            f"{early.lost:.1%} of the facts are lost by that."
        )
    for use, where in (("reading", "With the question read"), ("indexing", "In an index")):
        if (embedding := getattr(measured, f"{use}_embedding")) is not None:
            out.print(
                f"{where}, sentences are also found by what they are about, after {embedding.depth} layers; by both "
                f"{measured.notes[f'share_above_{use}_embedding']:.3f} of a text is above the fact."
            )
    out.print(f"Kept in {output}", style="dim", soft_wrap=True)


def _table(profile: Any) -> Table:
    """Share of a text that scored above the fact asked for, by kind of fact and use."""
    from homerlm.score.profile import LISTS

    table = Table(
        title="Share of a text above the fact asked for (0 is best, chance is 0.5), on facts not chosen by",
        title_justify="left",
    )
    kinds = profile.notes["by_kind_reading"]
    for name in ("heads (layer.head)", "all", *(kind.replace("_", " ") for kind in kinds)):
        table.add_column(name)
    for use in LISTS:
        overall = profile.notes.get(f"share_above_{use}", profile.share_above)
        heads, shares = getattr(profile, use), profile.notes[f"by_kind_{use}"].values()
        table.add_row(f"{use}: {', '.join(map(str, heads))}", *(f"{share:.3f}" for share in (overall, *shares)))
    return table
