"""Every setting of HOMER and its default, written once."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from homerlm.errors import ConfigError
from homerlm.merge.schedule import Schedule, plan

if TYPE_CHECKING:
    from homerlm.score.calibration import Calibration

SCORE_NAMES = ("mean_square", "peak_softmax", "softmax", "calibrated_logit", "logit", "random")
VOTERS = ("middle_layers", "upper_half", "all_layers", "last_layer")
REFINEMENT_NAMES = ("propagative", "none", "random", "per_layer_top_k")
SECOND_LOOKS = ("now", "later", "never")
CHOOSERS = ("attention", "surprisal", "both")
READOUTS = ("recomputed", "reencoded", "merged")
PAPER_WARMUP = 12 / 32  # section 4: 12 of Llama-2-7b's 32 layers


@dataclass(frozen=True)
class Lengths:
    """The four numbers of a config, resolved for one model; tokens and layers."""

    max_chunk_len: int
    target_len: int
    warmup_layers: int
    max_initial_chunk_len: int | None
    retention: float = 0.5
    second_look: str = "never"

    def schedule(self, prefix_len: int, context_len: int, suffix_len: int, layers: int) -> Schedule:
        """The tree of a prompt. Where there is a second look, the tree ends in the candidates for it."""
        affixes = prefix_len + suffix_len
        twice = self.second_look != "never" and affixes <= self.target_len < affixes + context_len
        return plan(
            prefix_len,
            context_len,
            suffix_len,
            layers=layers,
            max_chunk_len=self.max_chunk_len,
            target_len=max(self.max_chunk_len, self.target_len) if twice else self.target_len,
            warmup_layers=self.warmup_layers,
            max_initial_chunk_len=self.max_initial_chunk_len,
            retention=self.retention,
        )

    def looks_again(self, schedule: Schedule) -> bool:
        """Whether what the tree leaves of a prompt is judged once more: if the prompt is longer than the target, even
        where the tree's candidates would fit."""
        return self.second_look == "now" and self.target_len < schedule.prompt_len


@dataclass(frozen=True, kw_only=True)
class HomerConfig:
    """Settings of one compressor. The defaults are the preset that answers best (docs/experiments.md); `paper()` is
    the paper's method. `None` means derived from the model. Raises `ConfigError` for a value out of range."""

    max_chunk_len: int | None = field(
        default=None, metadata={"help": "Longest chunk in tokens, affixes included; default from chunk_share."}
    )
    target_len: int | None = field(
        default=None, metadata={"help": "Tokens of the final cache, affixes included; default from target_share."}
    )
    chunk_share: float = field(
        default=0.25, metadata={"help": "Default max_chunk_len as a share of the model's limit (paper 0.5)."}
    )
    target_share: float = field(
        default=0.125, metadata={"help": "Default target_len as a share of the model's limit (paper 0.5)."}
    )
    warmup_layers: int | None = field(
        default=None,
        metadata={
            "help": "Layers before the first merge level; default 3/8 of the layers. A tree that only chooses (readout "
            "recomputed) runs its first chunks through all layers that vote."
        },
    )
    max_initial_chunk_len: int | None = field(
        default=None, metadata={"help": "Longest first chunk in tokens; default the longest chunk."}
    )
    retention: float = field(
        default=0.5, metadata={"help": "Share of a full chunk's context that is kept for the merge (paper 0.5)."}
    )
    chosen_by: str = field(
        default="attention",
        metadata={
            "help": "What the tree goes by: the suffix's attention, what the model could not have predicted "
            "(surprisal), or both, for questions not known yet. All but attention need readout recomputed.",
            "choices": CHOOSERS,
        },
    )
    score: str = field(default="mean_square", metadata={"help": "How tokens are scored.", "choices": SCORE_NAMES})
    voters: str = field(
        default="middle_layers",
        metadata={
            "help": "Whose scores count: the sum over the layers just above the model's middle, over its upper half, "
            "over all layers above the warm-up, or a chunk's last layer alone.",
            "choices": VOTERS,
        },
    )
    scoring_queries: int | None = field(
        default=None, metadata={"help": "How many of the last suffix tokens score the context; default all of them."}
    )
    pooling: int = field(
        default=31,
        metadata={
            "help": "Scores are the maximum over so many neighbours (odd), 1 for none; before a second look, over "
            "twice as many."
        },
    )
    sentence_weight: float = field(
        default=0.3,
        metadata={
            "help": "What a match counts for the rest of its sentence, so that a strong one keeps all of it; 0 for "
            "nothing. Needs a tokenizer."
        },
    )
    refinement: str = field(
        default="propagative",
        metadata={
            "help": "What lower layers keep of a reduced chunk: the tokens its last layer chose, everything, a random "
            "choice, or each layer's own (paper table 4b; all but the first need readout merged).",
            "choices": REFINEMENT_NAMES,
        },
    )
    readout: str = field(
        default="recomputed",
        metadata={
            "help": "What the answer reads: the kept tokens recomputed as one prompt, the merged cache with its suffix "
            "re-encoded, or the merged cache itself.",
            "choices": READOUTS,
        },
    )
    second_look: str = field(
        default="now",
        metadata={
            "help": "Whether the tree's best tokens (max_chunk_len of them, or target_len if that is more) are read "
            "once more, as one chunk, and judged again: now, later (they are kept as they are, for questions to come, "
            "and judged by each of these), or never. Readout recomputed only.",
            "choices": SECOND_LOOKS,
        },
    )
    floor: float = field(
        default=0.1,
        metadata={
            "help": "At the second look, tokens below this share of the highest significance go even where there is "
            "room; 0 fills the target."
        },
    )
    recap_len: int = field(
        default=64,
        metadata={
            "help": "After the second look, the most significant passages are repeated right before the question, at "
            "most so many tokens, out of the target."
        },
    )
    leaf_batch: int = field(default=1, metadata={"help": "First chunks run at once: speed for memory."})
    calibration: Calibration | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, lowest in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < lowest):
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least {lowest}")
        for name in ("chunk_share", "target_share", "retention"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be above 0 and at most 1")
        for name in ("floor", "sentence_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be between 0 and 1")
        if self.pooling % 2 == 0:
            raise ConfigError(
                f"pooling is {self.pooling}; it must be odd, so that a token is in the middle of its neighbours: "
                f"use {self.pooling + 1}"
            )
        for setting in fields(self):
            choices, value = setting.metadata.get("choices"), getattr(self, setting.name)
            if choices and value not in choices:
                raise ConfigError(f"{setting.name} is {value!r}; it must be one of {', '.join(choices)}")
        if self.chosen_by != "attention" and self.readout != "recomputed":
            raise ConfigError(
                f"chosen_by is {self.chosen_by!r} with readout {self.readout!r}; it carries no keys and values: set "
                "readout='recomputed'"
            )
        self._check_refinement()
        if (first := self.max_initial_chunk_len) and (longest := self.max_chunk_len) and first > longest:
            raise ConfigError(f"max_initial_chunk_len is {first}, above max_chunk_len {longest}: lower it")

    @classmethod
    def paper(cls, **changes: Any) -> HomerConfig:
        """SPEC.md exactly: calibrated logits of the last token, every token by itself, the merged cache as it is.

        Needs a `calibration`; the bundled model's is found by itself.
        """
        settings: dict[str, Any] = {
            "chunk_share": 0.5,
            "target_share": 0.5,
            "score": "calibrated_logit",
            "voters": "last_layer",
            "scoring_queries": 1,
            "pooling": 1,
            "sentence_weight": 0.0,
            "readout": "merged",
        }
        return cls(**(settings | changes))

    def by_surprisal(self, schedule: Schedule) -> bool:
        """Whether surprisal has a part in choosing what is left of this prompt, if anything goes."""
        return self.chosen_by != "attention" and schedule.root.target < schedule.prompt_len

    def resolve(self, limit: int, layers: int) -> Lengths:
        """The lengths for a model that reads `limit` tokens (scaled, if its RoPE is) and has `layers` layers."""
        max_chunk_len = self.max_chunk_len or int(limit * self.chunk_share)
        target_len = self.target_len or int(limit * self.target_share)
        for name, value in (("max_chunk_len", max_chunk_len), ("target_len", target_len)):
            if value > limit:
                raise ConfigError(f"{name} is {value}, above the model's limit of {limit} tokens: lower it")
        warmup = round(PAPER_WARMUP * layers) if self.warmup_layers is None else self.warmup_layers
        if warmup >= layers:
            raise ConfigError(f"warmup_layers is {warmup}; it must be below the model's {layers} layers")
        if (merged := int(max_chunk_len * 2 * self.retention)) > limit:
            raise ConfigError(
                f"retention is {self.retention}, so merged chunks hold up to {merged} tokens, above the model's "
                f"limit of {limit}: lower it or max_chunk_len"
            )
        second_look = self.second_look if self.readout == "recomputed" else "never"
        return Lengths(max_chunk_len, target_len, warmup, self.max_initial_chunk_len, self.retention, second_look)

    def _check_refinement(self) -> None:
        """The other readouts make the lower layers anew or need them alike; a joint vote is no layer's own choice."""
        needed = {} if self.refinement == "propagative" else {"readout": "merged"}
        if self.refinement == "per_layer_top_k":
            needed["voters"] = "last_layer"
        for name, value in needed.items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"refinement is {self.refinement!r} with {name} {getattr(self, name)!r}; it needs {value!r}: "
                    f"set {name}={value!r}, or leave refinement at 'propagative'"
                )

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values, without the calibration's numbers."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "calibration"}


_LOWEST = {
    "max_chunk_len": 2,
    "target_len": 1,
    "warmup_layers": 0,
    "max_initial_chunk_len": 2,
    "scoring_queries": 1,
    "pooling": 1,
    "recap_len": 0,
    "leaf_batch": 1,
}
