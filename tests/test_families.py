"""Every family of tests/families.py: exact where nothing is dropped, sound where something is, refused by name."""

import copy
import importlib.util
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, LlamaConfig

import families
from homerlm import CompactContext, Homer, HomerConfig
from homerlm.errors import UnsupportedModelError
from homerlm.model.decoder import Decoder
from homerlm.model.support import verify_layer_loop

ROOT = Path(__file__).parents[1]
PREFIX, CONTEXT, SUFFIX, NEW = 5, 37, 7, 6
PROMPT = PREFIX + CONTEXT + SUFFIX
TARGET = 32
LLAMA = next(family for family in families.SUPPORTED if family.name == "llama")
assert min(PROMPT, TARGET) > families.WINDOW, "else no sliding window slides"


def build(family):
    if not family.available():
        pytest.skip(f"this transformers has no {family.name} that runs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return family.build()


@pytest.fixture(scope="module", params=families.SUPPORTED, ids=lambda family: family.name)
def model(request):
    return build(request.param)


@pytest.fixture(scope="module")
def llama():
    return build(LLAMA)


def ids(*shape, seed=1):
    return torch.randint(3, families.VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def unreduced(model, prompt):
    """(compressor, context) of a prompt (B, PROMPT) that fits one chunk."""
    homer = Homer(model, None, HomerConfig.paper(score="softmax", max_chunk_len=64, target_len=64, warmup_layers=1))
    return homer, homer.compress(*prompt.split([PREFIX, CONTEXT, SUFFIX], dim=1))


def reduced(model, readout="merged", refinement="propagative", rows=1, observer=None):
    """(compressor, context): 80 tokens of context in 4 leaves under 2 levels of merging, cut to TARGET tokens."""
    sizes = {"max_chunk_len": 40, "target_len": TARGET, "pooling": 3}
    if readout == "selected":
        config = HomerConfig(**sizes, min_share=0.0, recap_len=0)
    else:
        settings = {"score": "softmax", "scoring_queries": 4, "warmup_layers": 1}
        config = HomerConfig.paper(**sizes, **settings, readout=readout, refinement=refinement)
    homer = Homer(model, None, config)
    parts = [ids(rows, length, seed=length) for length in (5, 56, 4)]
    return homer, homer.compress(*parts, observer=observer)


def greedy(homer, context, steps):
    """(B, steps) by scoring everything generated so far once more for every token."""
    tokens = context.logits.argmax(-1, keepdim=True)
    while tokens.shape[1] < steps:
        tokens = torch.cat([tokens, homer.score(context, tokens)[:, -1:].argmax(-1)], dim=1)
    return tokens


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


class TestSupported:
    def test_unreduced_prompt_is_the_models_own_prefill(self, model):
        tokens = ids(1, PROMPT + NEW)
        homer, context = unreduced(model, tokens[:, :PROMPT])
        with torch.no_grad():
            logits = model(tokens, use_cache=False).logits
            cache = model(tokens[:, :PROMPT], use_cache=True).past_key_values
        close(context.logits, logits[:, PROMPT - 1])
        close(homer.score(context, tokens[:, PROMPT:]), logits[:, PROMPT:])
        assert len(cache.layers) == len(context.keys) == len(context.values)
        for layer, keys, values in zip(cache.layers, context.keys, context.values, strict=True):
            assert keys.shape[2] == values.shape[2] == PROMPT
            close(keys[:, :, -layer.keys.shape[2] :], layer.keys)
            close(values[:, :, -layer.values.shape[2] :], layer.values)

    def test_class(self, model, request):
        assert type(model).__name__ == request.node.callspec.params["model"].model_class

    def test_its_windows_are_the_caches(self, model):
        """A layer slides here exactly if the model's own cache lets go of tokens."""
        with torch.no_grad():
            cache = model(ids(1, PROMPT), use_cache=True).past_key_values
        decoder = Decoder(model)
        kept = [layer.keys.shape[2] for layer in cache.layers]
        assert kept == [min(PROMPT, (decoder.window(i) or PROMPT + 1) - 1) for i in range(len(kept))]

    @pytest.mark.parametrize(
        ("readout", "refinement"),
        [("merged", "propagative"), ("merged", "none"), ("reencoded", "propagative"), ("selected", "propagative")],
    )
    def test_generate_is_greedy_scoring_of_the_reduced_prompt(self, model, readout, refinement):
        homer, context = reduced(model, readout, refinement)
        assert len(context) <= TARGET
        assert context.uneven == (refinement == "none")
        got = homer.generate(context, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        assert got.tolist() == greedy(homer, context, NEW).tolist()

    def test_a_saved_context_loads(self, model, tmp_path):
        _, context = reduced(model)
        context.save(tmp_path / "context")
        loaded = CompactContext.load(tmp_path / "context", model)
        saved = (*context.keys, *context.values, context.logits)
        for got, expected in zip((*loaded.keys, *loaded.values, loaded.logits), saved, strict=True):
            assert torch.equal(got, expected)

    def test_model_is_left_as_it_was(self, model):
        def plain():
            with torch.no_grad():
                return model(ids(1, PROMPT)).logits

        class Stop(Exception):
            pass

        def stop(_event):
            assert Decoder(model).config._attn_implementation == "homerlm"
            raise Stop

        before, attention = plain(), Decoder(model).config._attn_implementation
        homer, context = reduced(model)
        homer.generate(context, max_new_tokens=2, do_sample=False)
        assert torch.equal(plain(), before)
        with pytest.raises(Stop):
            reduced(model, observer=stop)
        assert torch.equal(plain(), before)
        assert Decoder(model).config._attn_implementation == attention != "homerlm"
        hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
        assert not hooks


@pytest.mark.parametrize("family", families.REFUSED, ids=lambda family: family.name)
def test_refused_with_the_reason(family):
    model = build(family)
    assert type(model).__name__ == family.model_class
    with pytest.raises(UnsupportedModelError) as refusal:
        Homer(model)
    assert family.refused in str(refusal.value)
    assert family.model_class in str(refusal.value)


@pytest.mark.parametrize("loader", [AutoModel, AutoModelForSequenceClassification])
def test_model_without_language_modelling_head_is_refused(loader):
    sizes = {name: value for name, value in families.SIZES.items() if name != "head_dim"}
    with pytest.raises(UnsupportedModelError, match="no language modelling head: load it with AutoModelForCausalLM"):
        Homer(loader.from_config(LlamaConfig(**sizes)))


class TestProbe:
    """Families nobody listed: llama with something changed that its structure does not show."""

    @pytest.fixture
    def decoder(self):
        return Decoder(build(LLAMA))

    @staticmethod
    def only_in_our_loop(decoder, act):
        """`act` on the hidden state (B, S, E) after layer 1, but not in the model's own forward."""

        def change(_module, _args, output):
            return act(output) if decoder.config._attn_implementation == "homerlm" else output

        decoder.layers[1].register_forward_hook(change)

    def test_plain_llama_passes(self, decoder):
        verify_layer_loop(decoder)

    def test_layers_that_compute_something_else(self, decoder):
        self.only_in_our_loop(decoder, lambda hidden: hidden * 2)
        with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM: running its layers one by one gives other"):
            verify_layer_loop(decoder)

    @pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError, ValueError])
    def test_layers_that_want_other_inputs(self, decoder, error):
        def fail(_hidden):
            raise error("no such input")

        self.only_in_our_loop(decoder, fail)
        with pytest.raises(UnsupportedModelError, match=f"do not run by themselves .{error.__name__}: .*no such input"):
            verify_layer_loop(decoder)

    def test_running_out_of_memory_is_no_verdict_on_the_family(self, decoder):
        def fail(_hidden):
            raise torch.OutOfMemoryError

        self.only_in_our_loop(decoder, fail)
        with pytest.raises(torch.OutOfMemoryError):
            verify_layer_loop(decoder)

    @pytest.mark.parametrize(
        "change",
        [
            lambda layer: layer.values.mul_(-1),
            lambda layer: setattr(layer, "keys", layer.keys.repeat_interleave(2, dim=1)),
            lambda layer: setattr(layer, "values", layer.values[..., :5]),
        ],
        ids=["other values", "more heads", "smaller heads"],
    )
    def test_cache_of_something_else(self, decoder, change):
        def tamper(_module, _args, output):
            if output.past_key_values is not None:
                change(output.past_key_values.layers[2])

        decoder.model.register_forward_hook(tamper)
        with pytest.raises(UnsupportedModelError, match="caches something else than the keys and values"):
            verify_layer_loop(decoder)


class TestGenerateSettings:
    """What transformers' generate does with a prompt, it does with the unreduced context of that prompt."""

    def same(self, llama, rows=1, **settings):
        """The new ids, which the plain model gave for the whole prompt too."""
        prompt = ids(rows, PROMPT, seed=8)
        homer, context = unreduced(llama, prompt)
        torch.manual_seed(4)
        got = homer.generate(context, **settings)
        torch.manual_seed(4)
        expected = llama.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)[:, PROMPT:]
        assert got.tolist() == expected.tolist()
        return got

    def test_beams(self, llama):
        got = self.same(llama, num_beams=3, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        greedily = self.same(llama, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        assert got.tolist() != greedily.tolist(), "this prompt cannot tell beams from greedy"

    def test_beams_returned_together(self, llama):
        settings = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": NEW, "do_sample": False}
        assert len(set(map(tuple, self.same(llama, eos_token_id=None, **settings).tolist()))) == 3

    def test_beams_over_a_reduced_prompt(self, llama):
        """Two tokens, three beams: the best pair out of the three likeliest first tokens with every second one."""
        homer, context = reduced(llama)
        first = context.logits.log_softmax(-1)[0].topk(3)
        scores = torch.stack([homer.score(context, token[None, None])[0, -1] for token in first.indices])
        best = (first.values[:, None] + scores.log_softmax(-1)).flatten().argmax().item()
        expected = [first.indices[best // families.VOCAB].item(), best % families.VOCAB]
        got = homer.generate(context, num_beams=3, max_new_tokens=2, do_sample=False, eos_token_id=None)
        assert got.tolist() == [expected]

    def test_sampling_several(self, llama):
        got = self.same(llama, do_sample=True, num_return_sequences=2, max_new_tokens=NEW, eos_token_id=None)
        assert got.shape == (2, NEW)
        assert got[0].tolist() != got[1].tolist()

    @pytest.mark.parametrize(
        "settings", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}], ids=str
    )
    def test_batch_of_two(self, llama, settings):
        settings = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None} | settings
        got = self.same(llama, rows=2, **settings)
        assert len(got) == 2 * settings.get("num_return_sequences", 1)
        assert got[0].tolist() != got[-1].tolist()

    def test_rows_of_a_reduced_batch_do_not_touch(self, llama):
        homer, both = reduced(llama, rows=2)
        got = homer.generate(both, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        assert got.tolist() == greedy(homer, both, NEW).tolist()
        for row, tokens in enumerate(got.tolist()):
            parts = [ids(2, length, seed=length)[row : row + 1] for length in (5, 56, 4)]
            alone = homer.compress(*parts)
            assert homer.generate(alone, max_new_tokens=NEW, do_sample=False, eos_token_id=None).tolist() == [tokens]

    @pytest.mark.parametrize("guesses", ["prompt_lookup", "assistant"])
    def test_assisted(self, llama, guesses):
        """Several tokens a step: guesses from the prompt, or another model's, here a twin's."""
        homer, context = reduced(llama)
        lookup = {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}
        settings = lookup if guesses == "prompt_lookup" else {"assistant_model": copy.deepcopy(llama)}
        got = homer.generate(context, max_new_tokens=NEW, do_sample=False, eos_token_id=None, **settings)
        assert got.tolist() == greedy(homer, context, NEW).tolist()

    def test_stops_at_the_end_token(self, llama):
        free = self.same(llama, max_new_tokens=NEW, do_sample=False, eos_token_id=None)[0].tolist()
        end = next(token for token in free[1:] if token != free[0])
        got = self.same(llama, max_new_tokens=NEW, do_sample=False, eos_token_id=end)
        assert got[0].tolist() == free[: free.index(end) + 1]
        assert got.shape[1] < NEW

    def test_end_token_first(self, llama):
        first = self.same(llama, max_new_tokens=1, do_sample=False, eos_token_id=None)[0, 0].item()
        assert self.same(llama, max_new_tokens=NEW, do_sample=False, eos_token_id=first).tolist() == [[first]]

    def test_streamer(self, llama):
        """It is given the kept prompt at once, then every token by itself, as transformers' streamers expect."""

        class Streamer:
            def __init__(self):
                self.puts, self.ended = [], False

            def put(self, value):
                assert not self.ended
                self.puts.append(value.flatten().tolist())

            def end(self):
                self.ended = True

        homer, context = reduced(llama)
        streamer = Streamer()
        got = homer.generate(context, max_new_tokens=NEW, do_sample=False, eos_token_id=None, streamer=streamer)
        assert streamer.puts == [context.input_ids[0].tolist(), *([token] for token in got[0].tolist())]
        assert streamer.ended

    def test_output_object(self, llama):
        homer, context = reduced(llama)
        settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
        output = homer.generate(context, return_dict_in_generate=True, output_logits=True, **settings)
        assert output.sequences.tolist() == homer.generate(context, **settings).tolist()
        close(output.logits[0], context.logits)


def test_support_table_is_what_its_script_writes():
    spec = importlib.util.spec_from_file_location("make_support_table", ROOT / "docs/make_support_table.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (ROOT / "docs/support.md").read_text(encoding="utf-8") == script.document()
