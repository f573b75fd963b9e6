"""`homer plan`: the tree and its memory for a model and a length, without weights."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from homerlm.cli.cluster import ClusterOptions, plan_cluster, with_cluster
from homerlm.cli.console import out, print_json
from homerlm.cli.errors import UsageError
from homerlm.cli.options import Json, Rope, parse_tokens, with_config
from homerlm.config import Config, HomerConfig, MergeConfig
from homerlm.formatting import size
from homerlm.passes import Plan, peak_bytes

if TYPE_CHECKING:
    from homerlm.model.shape import DecoderShape

EXAMPLES = """
Examples:

  homer plan default 32k

  homer plan meta-llama/Llama-2-7b-chat-hf 65536 --rope yarn:2 --preset paper

  homer plan ./my-model 1000000 --target-len 8192 --json

  homer plan default 1000000000 --cluster 64x8 --rates rates.json --accelerator h100
"""
_MAX_LINES = 60


@with_config
@with_cluster
def plan(
    model: Annotated[str, typer.Argument(help="Hub name, folder or .gguf file; `default` is the bundled model.")],
    tokens: Annotated[str, typer.Argument(help="Length of the document in tokens; 8k is 8,192, 1M is 1,048,576.")],
    *,
    prefix_len: Annotated[int, typer.Option(min=0, help="Tokens of the instructions before it.")] = 20,
    suffix_len: Annotated[int, typer.Option(min=1, help="Tokens of the question after it.")] = 30,
    rope: Rope = None,
    as_json: Json = False,
    settings: Config,
    cluster: ClusterOptions,
) -> None:
    """Show the tree, its layer ranges and the memory predicted, for any model config; no weights are loaded.

    With --cluster: what an index of so many tokens takes on many machines, and a question about it.
    """
    context_len = parse_tokens(tokens, "TOKENS")
    from homerlm.model.loading import load_config
    from homerlm.model.shape import DecoderShape

    config = load_config(None if model == "default" else model, rope=rope)
    shape = DecoderShape.of(config)
    if model == "default" and isinstance(settings, HomerConfig):
        settings = with_default_profile(settings)
    if cluster.cluster is not None:
        if not isinstance(settings, HomerConfig):
            raise UsageError("--cluster plans an index, which the paper's preset does not make: leave out one of them")
        plan_cluster(cluster, model, context_len, shape, settings, as_json=as_json)
        return
    cluster.check_unused()
    planned = _plan(settings, shape, prefix_len, context_len, suffix_len)
    facts = {
        "model_limit": shape.limit,
        "cache_tokens": planned.cache_len,
        "cache_bytes": planned.cache_len * shape.layers * shape.kv_bytes,
        "peak_bytes": peak_bytes(planned, shape),
        "plain_kv_bytes": planned.prompt_len * shape.layers * shape.kv_bytes,
    }
    if as_json:
        passes = [asdict(planned_pass) for planned_pass in planned.passes]
        print_json({**facts, "settings": settings.to_dict(), "passes": passes})
        return
    lines = str(planned).splitlines()
    out.print("\n".join(lines[:_MAX_LINES]), markup=False)
    if len(lines) > _MAX_LINES:
        out.print(f"... {len(lines) - _MAX_LINES} more nodes (all of them with --json)")
    out.print(
        f"\nFinal cache: at most {facts['cache_tokens']:,} tokens, {size(facts['cache_bytes'])}. Predicted peak above "
        f"the weights: {size(facts['peak_bytes'])}; the plain model's keys and values: {size(facts['plain_kv_bytes'])}."
    )


def with_default_profile(settings: HomerConfig) -> HomerConfig:
    """The settings with the bundled model's profile, where they want one: its weights are not loaded here."""
    from homerlm.score.profile import Profile

    if settings.scoring_layers != "profile" or settings.profile is not None:
        return settings
    return replace(settings, profile=Profile.of_default_model())


def _plan(settings: Config, shape: DecoderShape, prefix_len: int, context_len: int, suffix_len: int) -> Plan:
    from homerlm.merge.plan import MergePlan
    from homerlm.select.plan import SelectPlan

    if isinstance(settings, MergeConfig):
        return MergePlan.of(settings, shape, prefix_len, context_len, suffix_len)
    return SelectPlan.of(settings, shape, prefix_len, context_len, suffix_len)
