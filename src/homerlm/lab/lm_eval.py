"""HOMER as a model of lm-evaluation-harness, so that its long-context tasks run as they are, with nothing truncated.

    python -m homerlm.lab.lm_eval --model homer --model_args pretrained=NAME,target_len=1024 --tasks TASK

is the harness's own command with the model `homer` registered: it finds no models outside its own package, by entry
points or otherwise. `model_args` (each may be left out):

- pretrained, rope, dtype, revision, trust_remote_code: what `homerlm.load_model` takes; device or device_map
- preset (default or paper), every setting of it by its name, and calibration, a file
- prefix_tokens, suffix_tokens: the harness gives a prompt as one text, so its first 64 tokens are taken for HOMER's
  prefix and its last 128 for the suffix, fewer where half of a chunk or of the target holds less; numbers given here
  are never lowered (`ScheduleError` if they do not fit). A question longer than the suffix wants a larger one.
- rolling_window: tokens scored at once beyond the limit in perplexity tasks; default the paper's
- max_gen_toks: longest answer where the task does not say (256)

A prompt of at most `target_len` tokens would lose none: the plain model reads it, by the harness's own `hf`.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from homerlm.config import MergeConfig, parse_settings
from homerlm.errors import ConfigError, HomerError, InputError
from homerlm.homer import Homer
from homerlm.lab.likelihood import Prefill
from homerlm.lab.readers import HomerReader, HomerReading, Use
from homerlm.lab.samples import Asked
from homerlm.model.loading import load_model
from homerlm.score.calibration import Calibration

try:
    from lm_eval import utils
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils_hf import stop_sequences_criteria
except ModuleNotFoundError as error:
    raise ImportError('lm-evaluation-harness is not installed: pip install "homerlm[eval]"') from error

PREFIX_TOKENS, SUFFIX_TOKENS = 64, 128
ROLLING_AFFIX = 100  # the paper's (docs/method.md)
UNLIMITED = sys.maxsize // 2  # for the harness, which would cut prompts to the model's limit
NAMED = ("pretrained", "device", "device_map", "calibration")
LOADING = ("rope", "dtype", "revision", "trust_remote_code")
OWN = {"prefix_tokens": 0, "suffix_tokens": 1, "rolling_window": 1, "max_gen_toks": 1}  # and the least of each
IGNORED = ("batch_size", "max_batch_size")  # the harness always passes them; prompts are compressed one at a time

Likelihood = tuple[float, bool]  # the sum of log-probabilities, and whether greedy decoding would have written it


@register_model("homer")
class HomerLM(HFLM):
    """One compressor under the harness: `simple_evaluate(model=HomerLM(homer), ...)`, or by name with `model_args`."""

    max_gen_toks = 256

    def __init__(self, homer: Homer, **own: int | None) -> None:
        """`own`: prefix_tokens, suffix_tokens, rolling_window, max_gen_toks (see above)."""
        if homer.tokenizer is None:
            raise InputError("this Homer has no tokenizer: pass one to Homer(model, tokenizer)")
        numbers = {name: value for name, value in own.items() if value is not None}
        for name, value in numbers.items():
            if name not in OWN or not isinstance(value, int) or value < OWN[name]:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least {OWN.get(name, 0)}")
        super().__init__(
            homer.model,
            backend="causal",
            tokenizer=copy.deepcopy(homer.tokenizer),  # the harness gives it a padding token
            max_length=UNLIMITED,
        )
        self.homer, self.reader = homer, HomerReader(homer)
        prefix, suffix = self._fitting(PREFIX_TOKENS, SUFFIX_TOKENS)
        self.prefix_tokens = numbers.get("prefix_tokens", prefix)
        self.suffix_tokens = numbers.get("suffix_tokens", suffix)
        self.rolling_window = numbers.get("rolling_window")
        self.max_gen_toks = numbers.get("max_gen_toks", self.max_gen_toks)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> HomerLM:
        """From `--model_args`: `name=value,name=value`."""
        return cls.create_from_arg_obj(utils.simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> HomerLM:
        """Raises `ConfigError` for a name or a value that is none of `model_args`, before the model is loaded, and what
        loading and `Homer` raise."""
        args = {name: value for name, value in (additional_config or {}).items() if value is not None}
        if str(args.get("device")).startswith("cuda") and not torch.cuda.is_available():
            del args["device"]  # the command's default on every machine
        args = {name: value for name, value in (args | arg_dict).items() if name not in IGNORED}
        own, loading, named = (
            {name: args.pop(name) for name in names if name in args} for names in (OWN, LOADING, NAMED)
        )
        best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        preset = args.pop("preset", "default")
        try:
            config = parse_settings(preset, {name: str(value) for name, value in args.items()})
        except ConfigError as error:
            names = ", ".join((*NAMED, "preset", *LOADING, *OWN))
            raise ConfigError(f"model_args: {error}; the model homer also takes {names}") from None
        device_map = str(named.get("device_map") or named.get("device") or best)
        model, tokenizer = load_model(named.get("pretrained"), device_map=device_map, **loading)
        if (calibration := named.get("calibration")) is not None:
            if not isinstance(config, MergeConfig):
                raise ConfigError("model_args: calibration is for preset=paper: leave it out")
            config = replace(config, calibration=Calibration.load(calibration, model))
        return cls(Homer(model, tokenizer, config), **own)

    def get_model_info(self) -> dict[str, Any]:
        """Joins the harness's record of the run."""
        settings = self.homer.config.to_dict() | vars(self.homer.lengths)
        split = {"prefix_tokens": self.prefix_tokens, "suffix_tokens": self.suffix_tokens}
        return super().get_model_info() | {"model_limit": self.homer.limit, "homer": settings | split}

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **settings: Any) -> Tensor:
        """Ids (1, S + n) of a prompt (1, S) and what follows it."""
        if self._fits(context[0]):
            return super()._model_generate(context, max_length, stop, **settings)
        compact = self._read(context[0].tolist(), self.prefix_tokens, self.suffix_tokens).source
        del settings["attention_mask"]
        if not settings.get("do_sample") or not settings.get("temperature"):
            settings = {"do_sample": False}
        stops = stop_sequences_criteria(self.tokenizer, stop, len(compact), 1)
        new = self.homer.generate(
            compact, max_new_tokens=max_length - context.shape[1], stopping_criteria=stops, **settings
        )
        return torch.cat([context, new.to(context.device)], dim=1)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **options: Any
    ) -> list[Likelihood]:
        """Of each (texts, context ids, continuation ids). Equal contexts, a question's choices, are read once."""
        short = [index for index, (_texts, context, _ids) in enumerate(requests) if self._fits(context)]
        for _texts, context, ids in (requests[index] for index in short):
            if len(context) + len(ids) - 1 > self.homer.limit:
                raise InputError(
                    f"a continuation of {len(ids)} tokens after {len(context)} goes beyond the model's "
                    f"{self.homer.limit}: only what comes before a continuation is compressed"
                )
        scored = super()._loglikelihood_tokens([requests[index] for index in short], disable_tqdm, **options)
        found = dict(zip(short, scored, strict=True))
        long: dict[tuple[int, ...], list[int]] = {}
        for index in range(len(requests)):
            if index not in found:
                long.setdefault(tuple(requests[index][1]), []).append(index)
        for context, indices in tqdm(long.items(), desc="Scoring", disable=disable_tqdm or not long):
            reading = self._read([*context], self.prefix_tokens, self.suffix_tokens)
            for index in indices:
                texts, _context, ids = requests[index]
                found[index] = self._after(reading, ids)
                self.cache_hook.add_partial("loglikelihood", texts, found[index])
        return [found[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts: the first window, the model's limit, by the plain model; each later one
        with everything before it compressed."""
        sums = []
        for request in tqdm(requests, desc="Scoring texts", disable=disable_tqdm):
            sums.append(self._rolling(*request.args))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, sums[-1])
        return sums

    def _rolling(self, text: str) -> float:
        ids = [self.prefix_token_id, *self.tok_encode(text)]
        first, window = self.homer.limit + 1, self._window()
        start = Prefill.of(self.homer.model, self._tensor(ids[:1]))
        total = start.score(self._tensor(ids[1:first])).total if ids[1:] else 0.0
        affixes = self._fitting(ROLLING_AFFIX, ROLLING_AFFIX)
        for begin in range(first, len(ids), window):
            total += self._after(self._read(ids[:begin], *affixes, "go on"), ids[begin : begin + window])[0]
        return total

    def _window(self) -> int:
        """Half the limit, a quarter under YaRN, and no more than the compressed context leaves room for."""
        if self.rolling_window is not None:
            return self.rolling_window
        limit, target = self.homer.limit, self.reader.going_on.lengths.target_len
        if target == limit:
            raise ConfigError(f"target_len is {target}, the model's limit: lower it, so that a window fits after it")
        rope = getattr(self.homer.decoder.config, "rope_parameters", None) or {}
        return min(limit // (4 if rope.get("rope_type") == "yarn" else 2), limit - target)

    def _fits(self, ids: Sequence[int] | Tensor) -> bool:
        return len(ids) <= self.homer.lengths.target_len

    def _fitting(self, prefix: int, suffix: int) -> tuple[int, int]:
        """The affix lengths, lowered in proportion to half of the shortest chunk or target, so that a tree exists."""
        lengths = self.homer.lengths
        longest = getattr(self.homer.config, "max_initial_chunk_len", None) or lengths.max_chunk_len
        room = min(prefix + suffix, min(longest, lengths.target_len) // 2)
        prefix = prefix * room // (prefix + suffix)
        return prefix, max(room - prefix, 1)

    def _read(self, ids: list[int], prefix: int, suffix: int, use: Use = "answer") -> HomerReading:
        parts = self._tensor(ids).tensor_split([prefix, max(len(ids) - suffix, prefix)], dim=1)
        return self.reader.read(Asked(*parts), 0, use)

    def _after(self, reading: HomerReading, ids: list[int]) -> Likelihood:
        """Of ids that follow a compressed prompt."""
        if not ids:
            return 0.0, True
        scored = reading.prefill().score(self._tensor(ids))
        return scored.total, bool(scored.greedy.all())

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([ids], device=self.homer.decoder.device)


def main() -> None:
    """The harness's own command line, in a process in which the model `homer` is registered."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except HomerError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
