"""HOMER as a model of lm-evaluation-harness, so that its long-context tasks run as they are, with nothing truncated.

    python -m homerlm.lab.lm_eval --model homer --model_args pretrained=NAME,target_len=1024 --tasks TASK

is the harness's own command with the model `homer` registered: it finds no models outside its own package, by entry
points or otherwise. `model_args` (each may be left out):

- pretrained, rope, dtype, revision, trust_remote_code: what `homerlm.load_model` takes; device or device_map
- preset (default or paper), every field of `HomerConfig` by its name, and calibration, a file
- prefix_tokens, suffix_tokens: the harness gives a prompt as one text, so its first 64 tokens are taken for HOMER's
  prefix and its last 128 for the suffix, fewer where half of a chunk or of the target holds less; numbers given here
  are never lowered (`ScheduleError` if they do not fit). A question longer than the suffix wants a larger one.
- rolling_window: tokens scored at once beyond the limit in perplexity tasks; default SPEC 10's
- max_gen_toks: longest answer where the task does not say (256)

A prompt of at most `target_len` tokens would lose none: the plain model reads it, exactly as the harness's `hf` does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

from homerlm.context import CompactContext
from homerlm.errors import ConfigError, HomerError, InputError
from homerlm.homer import Homer
from homerlm.lab.likelihood import CacheSteps
from homerlm.lab.lm_eval_args import from_model_args

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
except ModuleNotFoundError as error:
    raise ImportError('lm-evaluation-harness is not installed: pip install "homerlm[eval]"') from error

PREFIX_TOKENS, SUFFIX_TOKENS = 64, 128
ROLLING_AFFIX = 100  # SPEC 10
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")

Verdict = tuple[float, bool]  # the sum of log-probabilities, and whether greedy decoding would have written it


@register_model("homer")
class HomerLM(TemplateLM):
    """One compressor under the harness: `simple_evaluate(model=HomerLM(homer), ...)`, or by name with `model_args`."""

    def __init__(
        self,
        homer: Homer,
        *,
        prefix_tokens: int | None = None,
        suffix_tokens: int | None = None,
        rolling_window: int | None = None,
        max_gen_toks: int = 256,
    ) -> None:
        super().__init__()
        if homer.tokenizer is None:
            raise InputError("this Homer has no tokenizer: pass one to Homer(model, tokenizer)")
        given = {"prefix_tokens": (prefix_tokens, 0), "suffix_tokens": (suffix_tokens, 1)}
        given |= {"rolling_window": (rolling_window, 1), "max_gen_toks": (max_gen_toks, 1)}
        for name, (value, lowest) in given.items():
            if value is not None and (not isinstance(value, int) or value < lowest):
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least {lowest}")
        self.homer = homer
        self.tokenizer: Any = homer.tokenizer
        self.max_gen_toks = max_gen_toks
        self._device = homer.decoder.device
        prefix, suffix = self._fitting(PREFIX_TOKENS, SUFFIX_TOKENS)
        self.prefix_tokens = prefix if prefix_tokens is None else prefix_tokens
        self.suffix_tokens = suffix if suffix_tokens is None else suffix_tokens
        self.rolling_window = rolling_window

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> HomerLM:
        """From `--model_args`: `name=value,name=value`."""
        return cls.create_from_arg_obj(utils.simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> HomerLM:
        """Raises `ConfigError` for a name that is none of `model_args`, and what loading and `Homer` raise."""
        options = {name: value for name, value in (additional_config or {}).items() if value is not None}
        if str(options.get("device")).startswith("cuda") and not torch.cuda.is_available():
            del options["device"]  # the command's default on every machine
        homer, own = from_model_args(options | arg_dict)
        return cls(homer, **own)

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What a text without context is conditioned on: the beginning-of-text token, else the end-of-text token."""
        bos = self.tokenizer.bos_token_id
        found = self.tokenizer.eos_token_id if bos is None else bos
        if found is None:
            raise InputError("this tokenizer has neither a bos nor an eos token to put before a text without context")
        return found

    @property
    def max_length(self) -> int:
        """For the harness's record only: the model's limit. Prompts may be longer."""
        return self.homer.limit

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as one prompt; without a generation prompt the last message is left open, to be continued."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def get_model_info(self) -> dict[str, Any]:
        """Joins the harness's record of the run."""
        homer = self.homer
        settings = homer.config.to_dict() | vars(homer.lengths)
        split = {"prefix_tokens": self.prefix_tokens, "suffix_tokens": self.suffix_tokens}
        return {
            "model_num_parameters": homer.model.num_parameters(),
            "model_dtype": str(homer.model.dtype),
            "model_limit": homer.limit,
            "homer": settings | split,
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, all of them. By default a beginning-of-text token is added where the tokenizer does so and
        the text (a chat template's) does not hold one yet."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        return self.tokenizer(string, add_special_tokens=add_special_tokens, truncation=False, verbose=False).input_ids

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A text for each (prompt, settings): greedy unless they ask for sampling, cut before the first stop string."""
        texts = []
        for request in tqdm(requests, desc="Generating", disable=disable_tqdm):
            texts.append(self._generate(*request.args))
            self.cache_hook.add_partial("generate_until", request.args, texts[-1])
        return texts

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[Verdict]:
        """Of each (texts, context ids, continuation ids). Equal contexts, a question's choices, are read once."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, (_texts, context, _ids) in enumerate(requests):
            groups.setdefault(tuple(context), []).append(index)
        results: dict[int, Verdict] = {}
        for context, indices in tqdm(groups.items(), desc="Scoring", disable=disable_tqdm):
            scored = self._score([*context], [requests[index][2] for index in indices])
            for index, likelihood in zip(indices, scored, strict=True):
                results[index] = likelihood
                self.cache_hook.add_partial("loglikelihood", requests[index][0], likelihood)
        return [results[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts: the first window, the model's limit, by the plain model; each later one
        with everything before it compressed (SPEC 10)."""
        sums = []
        for request in tqdm(requests, desc="Scoring texts", disable=disable_tqdm):
            sums.append(self._rolling(*request.args))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, sums[-1])
        return sums

    def _rolling(self, text: str) -> float:
        ids = [self.prefix_token_id, *self.tok_encode(text)]
        first = self.homer.limit + 1
        total = self._plain_verdict(ids[:1], ids[1:first])[0]
        affixes = self._fitting(ROLLING_AFFIX, ROLLING_AFFIX)
        window = self._window()
        for start in range(first, len(ids), window):
            context = self._compress(ids[:start], *affixes, self._later)
            total += self._verdict_after(context, ids[start : start + window])[0]
        return total

    @cached_property
    def _later(self) -> Homer:
        """For texts that go on, which ask nothing."""
        return self.homer.for_later(chosen_by="attention")

    def _window(self) -> int:
        """Half the limit, a quarter under YaRN (SPEC 10), and no more than the compressed context leaves room for."""
        if self.rolling_window is not None:
            return self.rolling_window
        limit, target = self.homer.limit, self._later.lengths.target_len
        if target == limit:
            raise ConfigError(f"target_len is {target}, the model's limit: lower it, so that a window fits after it")
        rope = getattr(self.homer.decoder.config, "rope_parameters", None) or {}
        return min(limit // (4 if rope.get("rope_type") == "yarn" else 2), limit - target)

    def _score(self, context: list[int], continuations: list[list[int]]) -> list[Verdict]:
        if not self._fits(context):
            compact = self._compress(context, self.prefix_tokens, self.suffix_tokens)
            return [self._verdict_after(compact, ids) for ids in continuations]
        longest = len(context) + max(len(ids) for ids in continuations)
        if longest - 1 > self.homer.limit:
            raise InputError(
                f"a continuation of {longest - len(context)} tokens after {len(context)} goes beyond the model's "
                f"{self.homer.limit}: only what comes before a continuation is compressed"
            )
        return [self._plain_verdict(context, ids) for ids in continuations]

    def _fits(self, ids: list[int]) -> bool:
        return len(ids) <= self.homer.lengths.target_len

    def _fitting(self, prefix: int, suffix: int) -> tuple[int, int]:
        """The affix lengths, lowered in proportion to half of the shortest chunk or target, so that a tree exists."""
        lengths = self.homer.lengths
        longest = lengths.max_initial_chunk_len or lengths.max_chunk_len
        room = min(prefix + suffix, min(longest, lengths.target_len) // 2)
        prefix = prefix * room // (prefix + suffix)
        return prefix, max(room - prefix, 1)

    def _compress(self, ids: list[int], prefix: int, suffix: int, homer: Homer | None = None) -> CompactContext:
        tensor = self._tensor(ids)
        middle = max(len(ids) - suffix, prefix)
        homer = homer or self.homer
        return homer.compress(tensor[:, :prefix], tensor[:, prefix:middle], tensor[:, middle:])

    def _verdict_after(self, context: CompactContext, ids: list[int]) -> Verdict:
        return self._verdict(CacheSteps.after(context, self.homer.model), context.logits, ids)

    def _plain_verdict(self, context: list[int], ids: list[int]) -> Verdict:
        """Of ids after the at least one of the context, by the plain model."""
        steps = CacheSteps(self.homer.model, DynamicCache(config=self.homer.decoder.config), 0)
        return self._verdict(steps, steps.read(self._tensor(context)), ids)

    def _verdict(self, steps: CacheSteps, logits: Tensor, ids: list[int]) -> Verdict:
        if not ids:
            return 0.0, True
        scored = steps.score(logits, self._tensor(ids))
        return scored.total, bool(scored.greedy.all())

    def _generate(self, prompt: str, settings: dict[str, Any]) -> str:
        options = dict(normalize_gen_kwargs(settings, self.max_gen_toks))
        stops = [stop for stop in options.pop("until") or [] if stop]
        options["max_new_tokens"] = options.pop("max_gen_toks")
        if not options["do_sample"] or options.get("temperature") == 0:
            options = {name: value for name, value in options.items() if name not in SAMPLING} | {"do_sample": False}
        ids = self.tok_encode(prompt) or [self.prefix_token_id]
        context = None if self._fits(ids) else self._compress(ids, self.prefix_tokens, self.suffix_tokens)
        start = len(ids if context is None else context)
        options["stopping_criteria"] = StoppingCriteriaList([_Until(self.tokenizer, stops, start)])
        if context is None:
            inputs = self._tensor(ids)
            new = self.homer.model.generate(inputs, attention_mask=torch.ones_like(inputs), **options)[:, start:]
        else:
            new = self.homer.generate(context, **options)
        text = self.tokenizer.decode(new[0], skip_special_tokens=True)
        return text[: min([text.find(stop) for stop in stops if stop in text], default=len(text))]

    def _tensor(self, ids: list[int]) -> Tensor:
        return torch.tensor([ids], device=self.homer.decoder.device)


class _Until(StoppingCriteria):
    """Ends a generation when what was written after the `start` ids of its prompt holds one of the strings, or the
    tokenizer's end-of-text token, which some models' generation settings do not name."""

    def __init__(self, tokenizer: Any, stops: list[str], start: int) -> None:
        self.tokenizer, self.start = tokenizer, start
        self.stops = [*stops, tokenizer.eos_token] if tokenizer.eos_token else stops

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # noqa: ARG002
        texts = self.tokenizer.batch_decode(input_ids[:, self.start :])
        done = [any(stop in text for stop in self.stops) for text in texts]
        return torch.tensor(done, device=input_ids.device)


def main() -> None:
    """The harness's own command line, in a process in which the model `homer` is registered."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except HomerError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
