"""Whose file is it: the same model in another dtype is the same, any other model is not."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from homerlm.errors import CorruptFileError
from homerlm.model import identity
from homerlm.model.identity import ModelIdentity, tokenizer_fingerprint, weights_fingerprint

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def _llama(seed=0, **changes):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SIZES | changes)).eval()


def _holding(buffers):
    module = torch.nn.Module()
    for name, tensor in buffers.items():
        module.register_buffer(name, tensor)
    return module


@pytest.fixture(scope="module")
def model():
    return _llama()


class TestWeights:
    def test_is_stable_and_depends_on_the_weights(self, model):
        assert weights_fingerprint(model) == weights_fingerprint(_llama()) == weights_fingerprint(model)
        assert weights_fingerprint(model) != weights_fingerprint(_llama(seed=1))

    def test_one_checkpoint_in_float32_and_bfloat16_agrees(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        loaded = [LlamaForCausalLM.from_pretrained(tmp_path, dtype=d) for d in (torch.float32, torch.bfloat16)]
        assert [copy.lm_head.weight.dtype for copy in loaded] == [torch.float32, torch.bfloat16]
        assert {weights_fingerprint(copy) for copy in loaded} == {weights_fingerprint(model)}

    def test_a_change_in_any_one_parameter_is_seen_at_once(self, model):
        model = copy.deepcopy(model)
        seen = {weights_fingerprint(model)}
        for parameter in model.parameters():
            parameter.data.mul_(1.5)
            seen.add(weights_fingerprint(model))
        assert len(seen) == 1 + len(list(model.parameters()))

    def test_two_layers_exchanged_are_seen(self, model):
        other = copy.deepcopy(model)
        other.model.layers[0], other.model.layers[1] = other.model.layers[1], other.model.layers[0]
        assert weights_fingerprint(other) != weights_fingerprint(model)

    def test_a_shape_with_the_same_samples_is_seen(self):
        a, b = torch.nn.Linear(3, 4, bias=False), torch.nn.Linear(4, 3, bias=False)
        b.weight.data = a.weight.data.reshape(3, 4)
        assert weights_fingerprint(a) != weights_fingerprint(b)

    def test_quantised_buffers_count_but_rotary_tables_do_not(self):
        layer = _holding({"qweight": torch.arange(6, dtype=torch.int32)})
        layer.register_buffer("inv_freq", torch.ones(3), persistent=False)
        before = weights_fingerprint(layer)
        layer.inv_freq += 1
        assert weights_fingerprint(layer) == before
        layer.qweight[5] = 1000
        assert weights_fingerprint(layer) != before

    def test_integers_are_not_rounded(self):
        """1000 and 1001 are one value in bfloat16."""
        layer = _holding({"qweight": torch.tensor([1000])})
        before = weights_fingerprint(layer)
        layer.qweight[0] = 1001
        assert weights_fingerprint(layer) != before

    def test_order_of_registration_does_not_matter(self):
        tensors = {"a": torch.ones(2), "b": torch.zeros(3)}
        assert weights_fingerprint(_holding(tensors)) == weights_fingerprint(_holding(dict(reversed(tensors.items()))))

    def test_a_name_is_part_of_it(self):
        assert weights_fingerprint(_holding({"a": torch.ones(2)})) != weights_fingerprint(
            _holding({"b": torch.ones(2)})
        )

    def test_tied_embeddings_work(self):
        assert weights_fingerprint(_llama(tie_word_embeddings=True)) != weights_fingerprint(_llama())

    def test_offloaded_weights_are_named_not_read(self, model):
        partly = copy.deepcopy(model)
        partly.model.layers[1].to("meta")
        count = len(list(partly.model.layers[1].parameters()))
        assert weights_fingerprint(partly).endswith(f"+{count}-offloaded")
        assert weights_fingerprint(partly) != weights_fingerprint(model)
        assert "offloaded" not in weights_fingerprint(model)

    def test_the_model_is_left_as_it_was(self, model):
        before = {name: (tensor.clone(), tensor._version) for name, tensor in model.state_dict().items()}
        ModelIdentity.of(model)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name][0])
            assert tensor._version == before[name][1]


class TestSample:
    @pytest.mark.parametrize("shape", [(), (0,), (1,), (63,), (64,), (65,), (127,), (128,), (64, 64), (129, 65)])
    def test_reads_few_values_from_all_over(self, shape):
        tensor = torch.arange(torch.Size(shape).numel()).reshape(shape)
        sample = torch.frombuffer(bytearray(identity._sample(tensor)) or bytearray(8), dtype=torch.int64)
        assert len(sample) <= 64
        if tensor.numel() >= 64:
            gaps = sample.diff()
            assert (gaps == gaps[0]).all()
            assert tensor.numel() - sample[-1] <= 3 * gaps[0]

    def test_does_not_stay_in_one_column(self):
        columns = torch.arange(64 * 64).reshape(64, 64) % 64
        sample = torch.frombuffer(bytearray(identity._sample(columns)), dtype=torch.int64)
        assert len(sample.unique()) > 32

    def test_transposed_tensors_are_read_in_their_own_order(self):
        tensor = torch.arange(200).reshape(10, 20)
        assert identity._sample(tensor.T) == identity._sample(tensor.T.contiguous()) != identity._sample(tensor)


class TestModelIdentity:
    def test_holds_what_the_model_says(self, model):
        own = ModelIdentity.of(model)
        assert (own.architecture, own.name, own.revision) == ("LlamaForCausalLM", "", None)
        assert own.weights == weights_fingerprint(model)
        assert json.loads(own.rope)["max_position_embeddings"] == 64

    def test_round_trip_through_json(self, model):
        own = ModelIdentity.of(model)
        assert ModelIdentity.from_dict(json.loads(json.dumps(own.to_dict()))) == own

    def test_name_and_revision_are_not_compared(self, model):
        own = ModelIdentity.of(model)
        moved = dataclasses.replace(own, name="someone/else", revision="abc")
        assert own.mismatch(moved) is None

    def test_same_weights_in_another_dtype_match(self, model):
        assert ModelIdentity.of(model).mismatch(ModelIdentity.of(copy.deepcopy(model).bfloat16())) is None

    def test_other_weights(self, model):
        saved = dataclasses.replace(ModelIdentity.of(model), name="org/base", revision="abc123")
        given = ModelIdentity.of(_llama(seed=1))
        sentence = saved.mismatch(given)
        assert sentence.startswith("weights")
        for value in (saved.weights, given.weights, "org/base", "abc123"):
            assert value in sentence

    def test_other_architecture_is_said_first(self, model):
        other = MistralForCausalLM(MistralConfig(**SIZES))
        sentence = ModelIdentity.of(model).mismatch(ModelIdentity.of(other))
        assert sentence.startswith("architecture")
        assert "LlamaForCausalLM" in sentence
        assert "MistralForCausalLM" in sentence

    @pytest.mark.parametrize(
        "changes",
        [
            {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
            {"max_position_embeddings": 128},
        ],
    )
    def test_other_rope_settings(self, model, changes):
        saved, given = ModelIdentity.of(model), ModelIdentity.of(_llama(**changes))
        assert saved.weights == given.weights
        sentence = saved.mismatch(given)
        assert sentence.startswith("rope")
        assert saved.rope in sentence
        assert given.rope in sentence

    def test_rope_written_as_integers_is_the_same(self):
        one = _llama(rope_parameters={"rope_type": "default", "rope_theta": 10000})
        two = _llama(rope_parameters={"rope_theta": 10000.0, "rope_type": "default"})
        assert ModelIdentity.of(one).mismatch(ModelIdentity.of(two)) is None

    @pytest.mark.parametrize(
        "change",
        [
            lambda values: values.pop("rope"),
            lambda values: values.update(extra="x"),
            lambda values: values.update(weights=None),
            lambda values: values.update(revision=7),
        ],
    )
    def test_malformed_dicts_are_refused(self, model, change):
        values = ModelIdentity.of(model).to_dict()
        change(values)
        with pytest.raises(CorruptFileError, match="make the file again"):
            ModelIdentity.from_dict(values)

    @pytest.mark.parametrize("value", [None, [], "x", 3])
    def test_what_is_no_dict_is_refused(self, value):
        with pytest.raises(CorruptFileError):
            ModelIdentity.from_dict(value)


class TestTokenizer:
    @staticmethod
    def _tokenizer(words, unk="<unk>", **special):
        vocabulary = {word: index for index, word in enumerate(words.split())}
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token=unk)), unk_token=unk, **special
        )

    def test_none(self):
        assert tokenizer_fingerprint(None) is None

    def test_is_stable_over_copies_and_order(self):
        fingerprints = {tokenizer_fingerprint(self._tokenizer("<unk> a b c d")) for _ in range(8)}
        assert len(fingerprints) == 1

    def test_any_difference_is_seen(self):
        different = [
            self._tokenizer("<unk> a b"),
            self._tokenizer("<unk> b a"),
            self._tokenizer("<unk> a b c"),
            self._tokenizer("<unk> a b", eos_token="b"),
            self._tokenizer("<unk> a b", bos_token="b"),
            self._tokenizer("<unk> a b", unk="a"),
        ]
        assert len({tokenizer_fingerprint(tokenizer) for tokenizer in different}) == len(different)

    def test_a_token_that_is_special_in_only_one_of_them_is_seen(self):
        plain, special = self._tokenizer("<unk> a b"), self._tokenizer("<unk> a b", extra_special_tokens=["<x>"])
        plain.add_tokens(["<x>"])
        assert plain.get_vocab() == special.get_vocab()
        assert tokenizer_fingerprint(plain) != tokenizer_fingerprint(special)

    def test_an_added_token_is_seen_though_it_was_taken_before(self):
        grown = self._tokenizer("<unk> a b")
        before = tokenizer_fingerprint(grown)
        grown.add_tokens(["<x>"])
        fresh = self._tokenizer("<unk> a b")
        fresh.add_tokens(["<x>"])
        assert tokenizer_fingerprint(grown) == tokenizer_fingerprint(fresh) != before
