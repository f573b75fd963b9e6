"""Tiny random models for tests, sizes all different."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB, LAYERS, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, LIMIT = 97, 10, 6, 3, 12, 48, 512


def llama(seed: int = 0, **changes) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 70,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": LIMIT,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()


def prompt(prefix: int = 4, context: int = 150, suffix: int = 5, batch: int = 1, seed: int = 1):
    """Random prefix, context and suffix ids, (batch, tokens) each."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(1, VOCAB, (batch, n), generator=generator) for n in (prefix, context, suffix))
