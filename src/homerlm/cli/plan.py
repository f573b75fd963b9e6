"""`homer plan`: the tree and its memory for a model and a length, without weights."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from homerlm.cli.console import out, print_json
from homerlm.cli.options import Json, Rope, parse_tokens, with_config
from homerlm.config import HomerConfig
from homerlm.errors import InputError
from homerlm.formatting import size

EXAMPLES = """
Examples:

  homer plan default 32k

  homer plan meta-llama/Llama-2-7b-chat-hf 65536 --rope yarn:2 --preset paper

  homer plan ./my-model 1000000 --target-len 8192 --json
"""
_MAX_LINES = 60


@with_config
def plan(
    model: Annotated[str, typer.Argument(help="Hub name, folder or .gguf file; `default` is the bundled model.")],
    tokens: Annotated[str, typer.Argument(help="Length of the document in tokens; 8k is 8,192, 1M is 1,048,576.")],
    *,
    prefix_len: Annotated[int, typer.Option(min=0, help="Tokens of the instructions before it.")] = 20,
    suffix_len: Annotated[int, typer.Option(min=1, help="Tokens of the question after it.")] = 30,
    rope: Rope = None,
    as_json: Json = False,
    settings: HomerConfig,
) -> None:
    """Show the tree, its layer ranges and the memory predicted, for any model config; no weights are loaded."""
    context_len = parse_tokens(tokens, "TOKENS")
    from homerlm.homer import voting_layers
    from homerlm.model.loading import load_config

    config = load_config(None if model == "default" else model, rope=rope)
    lengths = settings.resolve(config.max_position_embeddings, config.num_hidden_layers)
    schedule = lengths.schedule(prefix_len, context_len, suffix_len, config.num_hidden_layers)
    cache_tokens = min(lengths.target_len, schedule.prompt_len)
    per_token = kv_bytes_per_token_and_layer(config)
    keeps_kv = settings.readout != "recomputed"
    facts = {
        "model_limit": config.max_position_embeddings,
        "cache_tokens": cache_tokens,
        "cache_bytes": cache_tokens * config.num_hidden_layers * per_token,
        "peak_kv_bytes": (schedule.peak_kv_tokens if keeps_kv else cache_tokens * schedule.layers) * per_token,
        "kv_bound_bytes": schedule.kv_bound_tokens() * per_token,
        "plain_kv_bytes": schedule.prompt_len * config.num_hidden_layers * per_token,
    }
    if as_json:
        print_json({**facts, "settings": settings.to_dict(), "schedule": asdict(schedule)})
        return
    lines = str(schedule).splitlines()
    out.print("\n".join(lines[:_MAX_LINES]), markup=False)
    if len(lines) > _MAX_LINES:
        out.print(f"... {len(lines) - _MAX_LINES} more nodes (all of them with --json)")
    voters = voting_layers(settings.voters, schedule.layers, lengths.warmup_layers)
    if not keeps_kv and voters is not None and not settings.by_surprisal(schedule):
        out.print(
            f"\nThis tree only chooses: its first chunks run through layers [0, {voters.stop}), where all vote; "
            "merged ones are ranked by these votes."
        )
    out.print(
        f"\nFinal cache: at most {facts['cache_tokens']:,} tokens, {size(facts['cache_bytes'])}. "
        f"Predicted peak of keys and values: {size(facts['peak_kv_bytes'])} "
        f"(appendix A's bound {size(facts['kv_bound_bytes'])}); the plain model: {size(facts['plain_kv_bytes'])}."
    )


def kv_bytes_per_token_and_layer(config: Any) -> int:
    """Bytes of one token's keys and values in one layer, in the config's dtype (2 bytes a number if it names none)."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    itemsize = getattr(config.dtype, "itemsize", 2) if getattr(config, "dtype", None) else 2
    if not heads or not head_dim:
        raise InputError(f"{type(config).__name__} does not say how many key-value heads it has or how large they are")
    return 2 * heads * head_dim * itemsize
