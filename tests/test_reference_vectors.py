"""The `paper` preset against numbers computed by the paper authors' program (tests/vectors/README.md)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from homerlm import Calibration, Homer, HomerConfig

VECTORS = Path(__file__).parent / "vectors"
CASES = sorted(path.stem for path in VECTORS.glob("*.safetensors") if not path.stem.startswith("model-"))


def load(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.fixture(scope="module", params=CASES)
def case(request):
    tensors, meta = load(VECTORS / f"{request.param}.safetensors")
    weights, _ = load(VECTORS / f"model-{meta['seed']}.safetensors")
    config = json.loads(meta["config"])
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    model.load_state_dict(weights, strict=False)
    initial = int(meta["max_initial_chunk_len"])
    homer = Homer(
        model,
        None,
        HomerConfig.paper(
            max_chunk_len=int(meta["max_chunk_len"]),
            target_len=int(meta["target_len"]),
            warmup_layers=int(meta["warmup_layers"]),
            max_initial_chunk_len=None if initial < 0 else initial,
            calibration=Calibration(tensors["bias"]),
        ),
    )
    ids = [tensors[f"{part}_ids"][None].long() for part in ("prefix", "context", "suffix")]
    return homer, homer.compress(*ids), tensors, int(meta["last_position_id"])


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_cache(case):
    _, context, tensors, last = case
    close(torch.cat(context.keys), tensors["keys"])
    close(torch.cat(context.values), tensors["values"])
    assert context.next_position == last + 1


def test_logits_of_the_first_new_token(case):
    _, context, tensors, _ = case
    close(context.logits[0], tensors["prefix_logits"])


def test_logits_of_a_continuation(case):
    homer, context, tensors, _ = case
    close(homer.score(context, tensors["continuation_ids"][None].long())[0], tensors["continuation_logits"])
