"""`homer calibrate`: what a token at each distance usually gets, for the paper's score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from homerlm.cli.console import err, out, print_json, status
from homerlm.cli.devices import DType, check_device, placed
from homerlm.cli.options import Device, Force, Json, Numbers, Quiet, Rope
from homerlm.cli.outputs import check_outputs

EXAMPLES = """
Examples:

  homer calibrate Qwen/Qwen3-4B qwen3-4b.calibration       (WikiText-103 from the hub, as the paper does)

  homer calibrate ./my-model my.calibration --text book1.txt --text book2.txt --queries 32

  homer calibrate default smollm2.calibration --text python    (Python's own documentation, offline)
"""


def calibrate(
    model: Annotated[str, typer.Argument(help="Hub name, folder or .gguf file; `default` is the bundled model.")],
    output: Annotated[Path, typer.Argument(help="File to write.")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="A document; may be repeated. `python` is Python's own documentation. Default WikiText-103."),
    ] = None,
    length: Annotated[int | None, typer.Option(min=2, help="Segment length; default half the model's limit.")] = None,
    segments: Annotated[int, typer.Option(min=1, help="How many segments.")] = 100,
    queries: Annotated[
        int, typer.Option(min=1, help="Last tokens of each segment to average over; the paper uses 1.")
    ] = 1,
    rope: Rope = None,
    device: Device = None,
    dtype: Numbers = DType.auto,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure the calibration that the paper's score needs, and save it for this model and RoPE scaling."""
    check_device(device)
    check_outputs({"OUTPUT": output}, [*(text or []), model], force=force)
    from homerlm.lab.corpora import named_texts, wikitext103

    texts = named_texts(text)[0] if text else wikitext103()
    silent = quiet or as_json
    with status("Loading the model", quiet=silent):
        from homerlm import Calibration, load_model

        loaded, tokenizer = load_model(
            None if model == "default" else model, rope=rope, dtype=str(dtype), **placed(device)
        )
    with Progress(console=err, transient=True, disable=silent or not err.is_terminal) as progress:
        task = progress.add_task("Measuring segments", total=None)
        calibration = Calibration.measure(
            loaded,
            tokenizer,
            texts,
            length=length,
            segments=segments,
            queries=queries,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    calibration.save(output)
    facts = {"output": str(output), "layers": len(calibration.bias), "distances": calibration.bias.shape[1]}
    facts |= calibration.notes
    if as_json:
        print_json(facts)
    elif not quiet:
        out.print(
            f"{output}: {facts['layers']} layers, distances below {facts['distances']:,}, "
            f"from {facts['segments']} segments"
        )
