"""Model families of transformers as tiny random models: the rows of the test matrix and of docs/support.md.

Reads nothing of the installed transformers until a model is built, so that the table made of it is the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WINDOW = 24
LIMIT = 512
VOCAB = 97
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": LIMIT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SQUARE = {"head_dim": None}  # the family derives 12 from hidden size and heads
SLIDING = {"sliding_window": WINDOW}
MIXED = SLIDING | {"layer_types": ["sliding_attention", "full_attention"] * 2}
PER_LAYER = MIXED | {"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 6}
LINEAR = {"layer_types": ["linear_attention", "full_attention"] * 2}
LATENT = SQUARE | {
    "num_key_value_heads": 4,
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 6,
    "qk_nope_head_dim": 8,
    "v_head_dim": 14,
}
EXPERTS = {  # no two families agree on the names
    "num_experts": 6,
    "num_local_experts": 6,
    "n_routed_experts": 6,
    "moe_num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 22,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
VISION = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}


def text_of_vision(text: dict[str, Any], vision: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"text_config": SIZES | text, "vision_config": vision, **more}


NO_ROPE = "no rotary position embedding"
RUNNING_STATE = "keeps a running state, from which no token can be dropped afterwards"
LATENT_CACHE = "caches compressed latents instead of keys and values"
SHARED = "shares keys and values between layers"
LAYER_INPUTS = "feeds every layer an input of its own"


@dataclass(frozen=True)
class Family:
    """One row. `name` is transformers' model type; `sizes` change `SIZES` (None: leave out); `refused` is the part of
    the error that gives the reason, None for a supported family; `since` the
    oldest transformers it was seen to run with, where older ones know it but are refused."""

    name: str
    model_class: str
    special: str
    sizes: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None
    loader: str = "AutoModelForCausalLM"
    since: str = "5.17"

    def available(self) -> bool:
        """Whether the installed transformers knows this family, in a form that runs."""
        from packaging.version import Version
        from transformers import CONFIG_MAPPING, __version__

        return self.name in CONFIG_MAPPING and Version(__version__) >= Version(self.since)

    def build(self, seed: int = 3) -> Any:
        """The family's model in float32, every weight random and far enough from zero to tell layers apart."""
        import torch
        import transformers
        from transformers import AutoConfig

        own = self.sizes if "text_config" in self.sizes else SIZES | self.sizes
        sizes = {name: value for name, value in own.items() if value is not None}
        loader = getattr(transformers, self.loader)
        config = AutoConfig.for_model(self.name, **sizes)
        # SDPA drops the softcap without a word in transformers 5.17, and is refused for such models later
        implementation = "eager" if getattr(config, "attn_logit_softcapping", None) else None
        model = loader.from_config(config, attn_implementation=implementation).float().eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(noise * 0.15 if weight.dim() > 1 else weight + noise * 0.1)
        return model


SUPPORTED = [
    Family("afmoe", "AfmoeForCausalLM", "gated attention, QK-norm, sliding windows, experts", MIXED | EXPERTS),
    Family("apertus", "ApertusForCausalLM", "QK-norm, xIELU"),
    Family("arcee", "ArceeForCausalLM", "squared ReLU"),
    Family("bitnet", "BitNetForCausalLM", "norms inside attention and MLP", SQUARE),
    Family(
        "cohere",
        "CohereForCausalLM",
        "parallel attention and MLP, QK-norm, logit scale",
        {"use_qk_norm": True, "logit_scale": 0.5},
    ),
    Family(
        "cohere2",
        "Cohere2ForCausalLM",
        "sliding windows, full layers without RoPE, logit scale",
        MIXED | {"logit_scale": 0.5},
    ),
    Family("cwm", "CwmForCausalLM", "sliding windows", MIXED),
    Family("dots1", "Dots1ForCausalLM", "QK-norm, experts", EXPERTS | {"n_shared_experts": 1}),
    Family("ernie4_5", "Ernie4_5ForCausalLM", "interleaved RoPE"),
    Family("ernie4_5_moe", "Ernie4_5_MoeForCausalLM", "interleaved RoPE, experts", EXPERTS),
    Family("exaone4", "Exaone4ForCausalLM", "QK-norm, sliding windows, full layers without RoPE", MIXED),
    Family("exaone_moe", "ExaoneMoeForCausalLM", "QK-norm, sliding windows, experts", MIXED | EXPERTS),
    Family("flex_olmo", "FlexOlmoForCausalLM", "norms after sublayers, QK-norm, experts", SQUARE | EXPERTS),
    Family("gemma", "GemmaForCausalLM", "scaled embeddings"),
    Family("gemma2", "Gemma2ForCausalLM", "softcapped attention and logits, sliding windows", MIXED),
    Family(
        "gemma3",
        "Gemma3ForConditionalGeneration",
        "text only: gemma3_text inside a vision model",
        text_of_vision(MIXED, VISION | {"model_type": "siglip_vision_model"}, mm_tokens_per_image=4),
        loader="AutoModelForImageTextToText",
    ),
    Family("gemma3_text", "Gemma3ForCausalLM", "QK-norm, sliding windows, RoPE by layer type", MIXED),
    Family(
        "gemma4_text",
        "Gemma4ForCausalLM",
        "without inputs per layer; another head size in full layers, sliding windows (transformers 5.23 or later)",
        MIXED | {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "global_head_dim": 16},
        since="5.23",
    ),
    Family("glm", "GlmForCausalLM", "partial interleaved RoPE"),
    Family("glm4", "Glm4ForCausalLM", "partial interleaved RoPE, norms around sublayers"),
    Family("glm4_moe", "Glm4MoeForCausalLM", "partial RoPE, QK-norm, experts", EXPERTS | {"use_qk_norm": True}),
    Family("gpt_neox", "GPTNeoXForCausalLM", "partial RoPE, parallel attention and MLP", {"rotary_pct": 0.5}),
    Family("gpt_oss", "GptOssForCausalLM", "attention sinks, sliding windows, experts", MIXED | EXPERTS),
    Family(
        "granite",
        "GraniteForCausalLM",
        "multipliers on embeddings, attention, residuals and logits",
        {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    ),
    Family("granitemoe", "GraniteMoeForCausalLM", "multipliers, experts", EXPERTS | {"residual_multiplier": 0.5}),
    Family("granitemoeshared", "GraniteMoeSharedForCausalLM", "multipliers, shared experts", EXPERTS),
    Family("granite_swa", "GraniteSWAForCausalLM", "multipliers, sliding windows", MIXED),
    Family("helium", "HeliumForCausalLM", "interleaved RoPE", {"head_dim": 12}),
    Family("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", "QK-norm after RoPE"),
    Family("hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM", "QK-norm after RoPE, experts", EXPERTS),
    Family("hyperclovax", "HyperCLOVAXForCausalLM", "multipliers"),
    Family("jais2", "Jais2ForCausalLM", "layer norms, squared ReLU"),
    Family("laguna", "LagunaForCausalLM", "gated attention, QK-norm, experts", EXPERTS),
    Family("llama", "LlamaForCausalLM", "the paper's family"),
    Family("mellum", "MellumForCausalLM", "QK-norm, sliding windows, RoPE by layer type", MIXED | EXPERTS),
    Family(
        "mimo_v2_flash",
        "MiMoV2FlashForCausalLM",
        "values of another head size, attention sinks, sliding windows, experts",
        MIXED | EXPERTS | {"v_head_dim": 14},
    ),
    Family("minimax_m2", "MiniMaxM2ForCausalLM", "partial RoPE, QK-norm, experts", EXPERTS),
    Family("ministral", "MinistralForCausalLM", "sliding windows by layer", MIXED),
    Family("ministral3", "Ministral3ForCausalLM", "queries scaled by position, sliding windows", SLIDING),
    Family("mistral", "MistralForCausalLM", "sliding windows", SLIDING),
    Family(
        "mistral3",
        "Mistral3ForConditionalGeneration",
        "text only: mistral inside a vision model",
        text_of_vision(SLIDING | {"model_type": "mistral"}, VISION | {"model_type": "pixtral"}),
        loader="AutoModelForImageTextToText",
    ),
    Family("mixtral", "MixtralForCausalLM", "sliding windows, experts", SLIDING | EXPERTS),
    Family("nanochat", "NanoChatForCausalLM", "QK-norm after RoPE, softcapped logits"),
    Family("nemotron", "NemotronForCausalLM", "partial RoPE, layer norms, squared ReLU"),
    Family("olmo", "OlmoForCausalLM", "norms without weights, clipped queries, keys and values", {"clip_qkv": 1.0}),
    Family("olmo2", "Olmo2ForCausalLM", "norms after sublayers, QK-norm over all heads"),
    Family("olmo3", "Olmo3ForCausalLM", "norms after sublayers, QK-norm, sliding windows, RoPE by layer type", MIXED),
    Family("olmoe", "OlmoeForCausalLM", "QK-norm over all heads, experts", SQUARE | EXPERTS),
    Family("persimmon", "PersimmonForCausalLM", "partial RoPE, QK-norm, no GQA"),
    Family("phi", "PhiForCausalLM", "partial RoPE, parallel attention and MLP", SQUARE),
    Family("phi3", "Phi3ForCausalLM", "fused projections, sliding windows", SLIDING),
    Family("phimoe", "PhimoeForCausalLM", "sliding windows, experts", SLIDING | EXPERTS),
    Family("qwen2", "Qwen2ForCausalLM", "biases on queries, keys and values"),
    Family("qwen2_moe", "Qwen2MoeForCausalLM", "biases on queries, keys and values, experts", EXPERTS),
    Family("qwen3", "Qwen3ForCausalLM", "QK-norm"),
    Family("qwen3_moe", "Qwen3MoeForCausalLM", "QK-norm, experts", EXPERTS),
    Family("seed_oss", "SeedOssForCausalLM", "biases on queries, keys and values"),
    Family("smollm3", "SmolLM3ForCausalLM", "every fourth layer without RoPE"),
    Family("solar_open", "SolarOpenForCausalLM", "experts", EXPERTS),
    Family("stablelm", "StableLmForCausalLM", "partial RoPE, layer norms", SQUARE | {"partial_rotary_factor": 0.5}),
    Family("starcoder2", "Starcoder2ForCausalLM", "biases, layer norms, sliding windows", SLIDING),
    Family("vaultgemma", "VaultGemmaForCausalLM", "softcapped attention and logits, sliding windows", MIXED),
]

REFUSED = [
    Family("bamba", "BambaForCausalLM", "Mamba layers", {"mamba_n_heads": 8, "mamba_d_head": 12}, RUNNING_STATE),
    Family("bloom", "BloomForCausalLM", "ALiBi", refused=NO_ROPE),
    Family("codegen", "CodeGenForCausalLM", "RoPE inside attention", refused=NO_ROPE),
    Family("deepseek_v2", "DeepseekV2ForCausalLM", "latent attention, experts", LATENT | EXPERTS, LATENT_CACHE),
    Family("deepseek_v3", "DeepseekV3ForCausalLM", "latent attention, experts", LATENT | EXPERTS, LATENT_CACHE),
    Family("deepseek_v32", "DeepseekV32ForCausalLM", "sparse latent attention", LATENT | EXPERTS, LATENT_CACHE),
    Family("diffllama", "DiffLlamaForCausalLM", "differential attention", refused="not those that it caches"),
    Family("doge", "DogeForCausalLM", "dynamic attention mask", refused="masks tokens by their values"),
    Family("falcon", "FalconForCausalLM", "own attention code", SQUARE, "has no `layers` list of decoder layers"),
    Family("falcon_h1", "FalconH1ForCausalLM", "Mamba beside attention", refused=RUNNING_STATE),
    Family(
        "gemma3n_text", "Gemma3nForCausalLM", "shared keys and values", PER_LAYER | {"num_kv_shared_layers": 2}, SHARED
    ),
    Family(
        "gemma4_text",
        "Gemma4ForCausalLM",
        "inputs for every layer",
        PER_LAYER | {"num_kv_shared_layers": 0},
        LAYER_INPUTS,
    ),
    Family("glm4_moe_lite", "Glm4MoeLiteForCausalLM", "latent attention, experts", LATENT | EXPERTS, LATENT_CACHE),
    Family("gpt2", "GPT2LMHeadModel", "learned positions", refused=NO_ROPE),
    Family("gpt_bigcode", "GPTBigCodeForCausalLM", "learned positions", refused=NO_ROPE),
    Family("gptj", "GPTJForCausalLM", "RoPE inside attention", refused=NO_ROPE),
    Family("jamba", "JambaForCausalLM", "Mamba layers among attention", refused=RUNNING_STATE),
    Family("jetmoe", "JetMoeForCausalLM", "experts inside attention", EXPERTS, "not those that it caches"),
    Family(
        "lfm2", "Lfm2ForCausalLM", "short convolutions", {"layer_types": ["conv", "full_attention"] * 2}, "convolution"
    ),
    Family("llama4_text", "Llama4ForCausalLM", "chunked attention", EXPERTS, "chunked attention"),
    Family("mamba", "MambaForCausalLM", "state space layers", refused=RUNNING_STATE),
    Family("minicpm3", "MiniCPM3ForCausalLM", "latent attention", LATENT, LATENT_CACHE),
    Family("minimax", "MiniMaxForCausalLM", "linear attention", LINEAR | EXPERTS, RUNNING_STATE),
    Family("modernbert-decoder", "ModernBertDecoderForCausalLM", "sliding windows", {}, "its layers are not found"),
    Family("mpt", "MptForCausalLM", "ALiBi", refused=NO_ROPE),
    Family("nemotron_h", "NemotronHForCausalLM", "Mamba layers among attention", refused=RUNNING_STATE),
    Family("opt", "OPTForCausalLM", "learned positions", refused=NO_ROPE),
    Family("qwen3_5_text", "Qwen3_5ForCausalLM", "linear attention", LINEAR, RUNNING_STATE),
    Family("qwen3_next", "Qwen3NextForCausalLM", "linear attention, experts", LINEAR | EXPERTS, RUNNING_STATE),
    Family("recurrent_gemma", "RecurrentGemmaForCausalLM", "recurrent layers", refused=RUNNING_STATE),
    Family(
        "t5",
        "T5ForConditionalGeneration",
        "encoder-decoder",
        refused="is an encoder-decoder",
        loader="AutoModelForSeq2SeqLM",
    ),
    Family("xglm", "XGLMForCausalLM", "sinusoidal positions", refused=NO_ROPE),
    Family("youtu", "YoutuForCausalLM", "latent attention", LATENT, LATENT_CACHE),
]
