"""Which models can run HOMER: refused by structure, with the reason, or by a few tokens run both ways.

docs/support.md lists the families that are tested.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from homerlm.errors import InputError, UnsupportedModelError

if TYPE_CHECKING:
    from homerlm.model.decoder import Decoder, LayerStep

_RUNNING_STATE = "keeps a running state, from which no token can be dropped afterwards"
_LAYER_TYPES = {
    "linear_attention": f"linear attention {_RUNNING_STATE}",
    "mamba": f"a recurrent layer {_RUNNING_STATE}",
    "recurrent": f"a recurrent layer {_RUNNING_STATE}",
    "conv": "a convolution layer mixes neighbouring tokens, which merging would tear apart",
    "hybrid": f"its recurrent part {_RUNNING_STATE}",
    "chunked_attention": "chunked attention ties tokens to absolute positions, which HOMER reuses",
}
_SETTINGS = {
    "kv_lora_rank": "caches compressed latents instead of keys and values (multi-head latent attention)",
    "num_kv_shared_layers": "shares keys and values between layers, so layers cannot run apart",
    "hidden_size_per_layer_input": "feeds every layer an input of its own beside the hidden state",
}
_FAMILIES = {
    "diffllama": "attends with values put together from two heads (differential attention), not those that it caches",
    "doge": "masks tokens by their values (dynamic mask attention), so what a token sees changes with its chunk",
    "jetmoe": "attends with keys and values repeated for every expert, not those that it caches",
    "modernbert-decoder": "calls its output head `decoder`, so that its layers are not found",
}


def refuse_unsupported(model: PreTrainedModel) -> None:
    """Raise `UnsupportedModelError`, with the reason, for a model whose structure cannot run HOMER."""
    name = type(model).__name__
    config: Any = model.config.get_text_config(decoder=True)
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} is an encoder-decoder; HOMER compresses the cache of a decoder-only model")
    if (family := getattr(config, "model_type", None)) in _FAMILIES:
        raise UnsupportedModelError(f"{name} {_FAMILIES[family]}")
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    for kind in dict.fromkeys(kinds):
        for unsupported, reason in _LAYER_TYPES.items():
            if unsupported in kind:
                raise UnsupportedModelError(f"{name} has layers of type {kind!r}: {reason}")
    for setting, reason in _SETTINGS.items():
        if value := getattr(config, setting, None):
            raise UnsupportedModelError(f"{name} {reason} ({setting}={value})")
    _refuse_modules(name, model)


def _refuse_modules(name: str, model: PreTrainedModel) -> None:
    base = model.get_decoder()
    if getattr(base, "rotary_emb", None) is None:
        raise UnsupportedModelError(
            f"{name} has no rotary position embedding (RoPE) at the level of its layers; HOMER reuses RoPE positions"
        )
    if not isinstance(getattr(base, "layers", None), nn.ModuleList):
        raise UnsupportedModelError(f"{name} has no `layers` list of decoder layers")
    if not getattr(model, "_supports_attention_backend", False) and not getattr(model, "_supports_sdpa", False):
        raise UnsupportedModelError(f"{name} does not use transformers' attention interface")
    if model.get_output_embeddings() is None:
        raise UnsupportedModelError(f"{name} has no language modelling head: load it with AutoModelForCausalLM")


def verify_layer_loop(decoder: Decoder) -> None:
    """Run a few tokens through the model and through the layer loop; refuse a model for which the two differ.

    The last line of defence for families nobody has tried: a wrong answer is worse than a refusal. Relative to the
    largest logit, key or value; the loop is exact for every family of the support table, but in half precision another
    attention kernel than ours (eager, flash) may round otherwise.
    """
    tolerance = 1e-2 if decoder.model.dtype in (torch.float32, torch.float64) else 1e-1
    name = type(decoder.model).__name__
    vocab = decoder.model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(1, 9, device=decoder.device) % vocab)[None]
    with torch.no_grad(), decoder.eager():
        expected = decoder.model(input_ids=ids, use_cache=True)
        if not torch.isfinite(expected.logits[:, -1]).all():
            raise InputError(
                f"{name} gives NaN or infinite logits for a plain prompt: its weights are damaged, "
                "or its dtype overflows (try dtype=bfloat16 or float32)"
            )
        steps, logits = _layer_loop(decoder, ids)
    if not (difference := _difference(logits, expected.logits[:, -1:])) <= tolerance:
        raise UnsupportedModelError(
            f"{name}: running its layers one by one gives other logits than its forward "
            f"(relative difference {difference:.2g}, allowed {tolerance}), so its layers do more than HOMER can see"
        )
    if not (difference := _cache_difference(steps, expected.past_key_values)) <= tolerance:
        raise UnsupportedModelError(
            f"{name} caches something else than the keys and values that its attention reads "
            f"(relative difference {difference:.2g}, allowed {tolerance}), so a compact cache cannot be handed to it"
        )


def _layer_loop(decoder: Decoder, ids: Tensor) -> tuple[list[LayerStep], Tensor]:
    """All layers over ids (1, S) at positions from 0, and the last token's logits (1, 1, V)."""
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    try:
        with decoder.session():
            steps = list(decoder.steps(decoder.embed(ids), positions, 0, len(decoder.layers)))
        hidden = steps[-1].hidden
        assert hidden is not None
        return steps, decoder.logits(hidden[:, -1:])
    except UnsupportedModelError:
        raise
    except (TypeError, AttributeError, LookupError, ValueError) as error:  # not RuntimeError: memory and device faults
        raise UnsupportedModelError(
            f"{type(decoder.model).__name__}: its layers do not run by themselves ({type(error).__name__}: {error})"
        ) from error


def _cache_difference(steps: list[LayerStep], cache: Any) -> float:
    """Largest relative difference over layers, in the tokens that the model's own cache holds."""
    layers = getattr(cache, "layers", ())
    if len(layers) != len(steps):
        return float("inf")
    own = [states for layer in layers for states in (layer.keys, layer.values)]
    seen = [states for step in steps for states in (step.attended.keys, step.attended.values)]
    return max(_difference(s[:, :, -o.shape[2] :], o) for s, o in zip(seen, own, strict=True))


def _difference(got: Tensor, expected: Tensor) -> float:
    """Relative to the largest expected value; infinite where the shapes differ."""
    if got.shape != expected.shape:
        return float("inf")
    return ((got.to(expected.device) - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()
