"""Saved contexts: the same answers after a round trip, and every mismatch refused with both values."""

import pytest
import torch
from safetensors import safe_open

from homerlm import CompactContext, Homer, HomerConfig, HomerError
from homerlm.errors import CorruptFileError, InputError, MismatchError
from homerlm.model.rope import RopeScaling, scale_config
from tiny import LIMIT, llama, prompt
from words import tokenizer_of

CONFIG = HomerConfig.paper(
    max_chunk_len=30, target_len=24, warmup_layers=2, pooling=3, score="softmax", readout="reencoded"
)


@pytest.fixture(scope="module")
def model():
    return llama()


@pytest.fixture(scope="module")
def context(model):
    return Homer(model, tokenizer_of(97), CONFIG).compress(*prompt(batch=2))


@pytest.fixture
def saved(context, tmp_path):
    context.save(tmp_path / "c.homer")
    return tmp_path / "c.homer"


def test_shapes_are_as_documented(context, model):
    length, config = len(context), model.config
    assert length == 24
    assert {k.shape for k in (*context.keys, *context.values)} == {(2, config.num_key_value_heads, 24, config.head_dim)}
    assert context.position_ids.shape == context.token_indices.shape == context.input_ids.shape == (2, 24)
    assert context.logits.shape == (2, config.vocab_size)
    whole = torch.cat(prompt(batch=2), dim=1)
    assert torch.equal(context.input_ids, whole.gather(1, context.token_indices))
    assert context.token_indices[:, :4].tolist() == [[0, 1, 2, 3]] * 2
    assert context.token_indices[:, -5:].tolist() == [[154, 155, 156, 157, 158]] * 2


def test_generates_the_same_after_a_round_trip(model, context, saved):
    loaded = CompactContext.load(saved, model, tokenizer_of(97))
    homer = Homer(model, None, CONFIG)
    for name in ("position_ids", "token_indices", "input_ids", "logits"):
        assert torch.equal(getattr(loaded, name), getattr(context, name))
    assert (loaded.next_position, loaded.prefix_len, loaded.suffix_len) == (context.next_position, 4, 5)
    assert loaded.origin == context.origin
    new = [homer.generate(c, max_new_tokens=8, do_sample=False) for c in (context, loaded)]
    assert torch.equal(*new)


def test_the_cache_is_one_that_generate_accepts(model, context):
    """By hand, as a program of the user's would: the next token at `next_position`."""
    first = context.logits.argmax(-1, keepdim=True)
    cache = context.to_cache()
    positions = torch.full((2, 1), context.next_position)
    with torch.no_grad():
        logits = model(first, past_key_values=cache, position_ids=positions).logits[:, -1]
    expected = Homer(model, None, CONFIG).score(context, first)[:, -1]
    torch.testing.assert_close(logits, expected)
    assert cache.get_seq_length() == 25
    assert len(context) == 24


def test_holds_no_pickle_and_names_its_origin(saved, model):
    with safe_open(saved, "pt") as file:
        assert "keys.0" in file.keys()  # noqa: SIM118
        assert '"LlamaForCausalLM"' in file.metadata()["metadata"]
        assert '"readout": "reencoded"' in file.metadata()["metadata"]


def scaled(model):
    twin = type(model)(scale_config(model.config, RopeScaling("pi", 2))).eval()
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda model: llama(seed=7), "weights"),
        (scaled, "linear"),
        (lambda model: llama().to(torch.bfloat16), "torch.bfloat16"),
    ],
)
def test_another_model_is_refused_with_both_values(saved, model, other, named):
    with pytest.raises(MismatchError, match=named):
        CompactContext.load(saved, other(model))


def test_another_tokenizer_is_refused(saved, model):
    with pytest.raises(MismatchError, match="made with tokenizer"):
        CompactContext.load(saved, model, tokenizer_of(50))


def test_a_missing_file_is_refused(model, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        CompactContext.load(tmp_path / "none", model)


def test_a_calibration_is_no_context(model, tmp_path):
    from homerlm import Calibration

    Calibration(torch.zeros(10, LIMIT)).save(tmp_path / "c")
    with pytest.raises(MismatchError, match="calibration"):
        CompactContext.load(tmp_path / "c", model)


def test_truncated_and_flipped_files_are_refused(saved, model):
    data = saved.read_bytes()
    for length in (0, 7, 100, len(data) // 2, len(data) - 1):
        saved.write_bytes(data[:length])
        with pytest.raises(HomerError):
            CompactContext.load(saved, model)
    for at in range(0, len(data), len(data) // 40):
        saved.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(HomerError):
            CompactContext.load(saved, model)


def rewritten(saved, change):
    """The file with its content changed and a digest that fits, as a hostile writer would make it."""
    from homerlm import storage
    from homerlm.context import KIND, VERSION

    tensors, metadata = storage.read(saved, kind=KIND, version=VERSION)
    change(tensors, metadata)
    storage.write(saved, kind=KIND, version=VERSION, tensors=tensors, metadata=metadata)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda t, m: t.pop("keys.3"), CorruptFileError),
        (lambda t, m: t.update(extra=torch.zeros(1)), CorruptFileError),
        (lambda t, m: t.update({"keys.3": t["keys.3"][:, :2]}), MismatchError),
        (lambda t, m: t.update({"values.3": t["values.3"].half()}), MismatchError),
        (lambda t, m: t.update(position_ids=t["position_ids"] + 10_000), CorruptFileError),
        (lambda t, m: t.update(input_ids=t["input_ids"] - 200), CorruptFileError),
        (lambda t, m: t.update(logits=t["logits"][:, :5]), MismatchError),
        (lambda t, m: m.pop("next_position"), CorruptFileError),
        (lambda t, m: m.update(prefix_len=-1), CorruptFileError),
    ],
)
def test_forged_content_is_refused(saved, model, change, error):
    rewritten(saved, change)
    with pytest.raises(error):
        CompactContext.load(saved, model)


class TestWeightsChangedInPlace:
    """As by a LoRA that is merged: what was kept before belongs to another model, what is made then to this one."""

    @pytest.fixture(params=[CONFIG, HomerConfig(max_chunk_len=30, target_len=24, pooling=3)], ids=["paper", "default"])
    def homer(self, request):
        return Homer(llama(), None, request.param)

    @staticmethod
    def change(homer):
        homer.model.lm_head.weight.data.add_(1)

    def test_a_context_made_after_it_carries_the_new_identity(self, homer, tmp_path):
        before = homer.compress(*prompt())
        self.change(homer)
        after = homer.compress(*prompt())
        again = homer.focus(after, prompt(seed=8)[2])
        assert before.origin.model.weights != after.origin.model.weights == again.origin.model.weights
        after.save(tmp_path / "c.homer")
        assert CompactContext.load(tmp_path / "c.homer", homer.model).origin == after.origin

    def test_one_made_before_it_is_refused(self, homer):
        context = homer.compress(*prompt())
        self.change(homer)
        for use in (homer.focus, homer.exchange_suffix, homer.score):
            with pytest.raises(MismatchError, match="weights"):
                use(context, prompt(seed=8)[2])
        with pytest.raises(MismatchError, match="weights"):
            homer.generate(context, max_new_tokens=1)
