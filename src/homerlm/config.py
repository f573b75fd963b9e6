"""Every setting of both methods and its default, written once.

`HomerConfig` holds the default method's settings (`homerlm.select`), `MergeConfig` those of HOMER as published
(`homerlm.merge`); `HomerConfig.paper()` makes the second. A setting that a method does not have is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Self

from homerlm.errors import ConfigError
from homerlm.formatting import count_of

if TYPE_CHECKING:
    from homerlm.score.calibration import Calibration
    from homerlm.score.profile import Profile

SCORE_NAMES = ("mean_square", "peak_softmax", "softmax", "calibrated_logit", "logit", "random")
SELECT_TOKENS = 1000  # of a document, that are chosen for other programs where nothing else is said
RENAMED = {
    "second_look": "rerank",
    "floor": "min_share",
    "voters": "scoring_layers",
    "leaf_batch": "chunk_batch",
}


def _setting(default: Any, help: str, *, low: float | None = None, high: float | None = None, **more: Any) -> Any:
    """A field with the text and the range that messages and the command line read."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, **more})


def _share(default: float, help: str, *, zero: bool = False) -> Any:
    return _setting(default, help, low=0, high=1, above=not zero)


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What both configs have, and the checks of both. Raises `ConfigError` for a value out of range."""

    preset: ClassVar[str]

    max_chunk_len: int | None = _setting(
        None, "Longest chunk in tokens, affixes included; at most what some layer's attention reaches over.", low=2
    )
    target_len: int | None = _setting(None, "Tokens of the final cache, affixes included.", low=1)
    scoring_queries: int | None = _setting(
        None, "Number of the last suffix tokens whose attention scores the context; default all of them.", low=1
    )
    pooling: int = _setting(1, "Scores are the maximum over so many neighbours (odd), 1 for none.", low=1)
    chunk_batch: int = _setting(1, "Number of first chunks run at once: speed for memory.", low=1)

    def __new__(cls, *_args: Any, **given: Any) -> Self:
        for name in given:
            if name not in cls.__dataclass_fields__:
                raise ConfigError(_unknown(cls, name))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for setting in public_fields(type(self)):
            _check(setting, getattr(self, setting.name))
        if self.pooling % 2 == 0:
            raise ConfigError(
                f"pooling is {self.pooling}; it must be odd, so that a token is in the middle of its neighbours: "
                f"use {self.pooling + 1}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values, without the calibration's numbers."""
        return {"preset": self.preset} | {f.name: getattr(self, f.name) for f in public_fields(type(self))}


@dataclass(frozen=True, kw_only=True)
class HomerConfig(_Settings):
    """Settings of the default method, which answers best (docs/experiments.md): chunks are scored, the best tokens of
    the document are reranked side by side, and what is left is read as one short prompt. `HomerConfig.paper()` is the
    published method. `None` means derived from the model and the prompt.
    """

    preset: ClassVar[str] = "default"

    chosen_by: str = _setting(
        "attention",
        "What tokens are chosen by: the suffix's attention, what the model could not have predicted (surprisal), or "
        "both, for questions not known yet.",
        choices=("attention", "surprisal", "both"),
    )
    score: str = _setting(
        "peak_softmax", "How tokens are scored.", choices=tuple(n for n in SCORE_NAMES if n != "calibrated_logit")
    )
    scoring_layers: str = _setting(
        "profile",
        "What scores the tokens: the heads of the model's profile (`homer profile`), or all heads of the layers just "
        "above its middle, of its upper half, or of all layers. Layers whose attention does not reach over the whole "
        "chunk never score; without a profile the middle does.",
        choices=("profile", "middle", "upper_half", "all"),
    )
    early_drop: str = _setting(
        "never",
        "Whether tokens that the profile's early heads do not find leave a chunk before its last layers: as the "
        "profile says, which has measured what that loses, or never.",
        choices=("profile", "never"),
    )
    embeddings: str = _setting(
        "profile",
        "Whether sentences are also found by what they are about, by the mean of the model's own hidden states: where "
        "the profile has measured that it helps, or never. Needs sentences as the unit, and attention that chooses.",
        choices=("profile", "never"),
    )
    likelihood: str = _setting(
        "always",
        "Whether the best sentences of a document that is longer than the candidates are also ranked by how likely the "
        "whole model finds the question right behind each: always, or never, which is faster. Needs a tokenizer, "
        "sentences as the unit, attention that chooses, and a reranking.",
        choices=("always", "never"),
    )
    contrast: str = _setting(
        "neutral",
        "What is taken off a token's score: what a neutral question gives it, or nothing. Needs a tokenizer.",
        choices=("neutral", "none"),
    )
    unit: str = _setting(
        "sentence",
        "What is kept or dropped as a whole: sentences (long ones and code in parts), or tokens with their neighbours. "
        "Sentences need a tokenizer.",
        choices=("sentence", "neighbours"),
    )
    neighbour_share: float = _share(
        0.3,
        "Where sentences are the unit: before the reranking, a sentence gains this share of the significance of the "
        "better of the two beside it; 0 for none. What answers a question often stands beside what sounds like it.",
        zero=True,
    )
    pooling: int = _setting(
        31,
        "Where neighbours are the unit: scores are the maximum over so many of them (odd), 1 for none; before the "
        "reranking, over twice as many.",
        low=1,
    )
    sentence_weight: float = _share(
        0.3,
        "Where neighbours are the unit: share of a match's score that goes to the rest of its sentence; 0 for none. "
        "Needs a tokenizer.",
        zero=True,
    )
    rerank: str = _setting(
        "now",
        "Whether the candidates (max_chunk_len of the best tokens, or target_len if that is more) are read once more, "
        "as one chunk, and scored again: now, later (they are kept as they are, for questions to come, and scored by "
        "each of these), or never.",
        choices=("now", "later", "never"),
    )
    min_share: float = _share(
        0.1,
        "At the reranking, tokens below this share of the highest significance go even where there is room; 0 fills "
        "the target.",
        zero=True,
    )
    link_len: int = _setting(
        128,
        "After the reranking, sentences that share a rare word with the best ones, and that a question with those in "
        "front of it asks for, are kept too, at most so many tokens, out of the target: what a question leads to in "
        "several steps. Needs a tokenizer and sentences as units.",
        low=0,
    )
    recap_len: int = _setting(
        96,
        "After the reranking, the leading sentence is repeated right before the question, up to three times while it "
        "fits into so many tokens, or each of several once; out of the target.",
        low=0,
    )
    prefilter: int | None = _setting(
        None,
        "Of a longer document, read only so many tokens: the passages that BM25 ranks first for the question's words. "
        "For millions of tokens; what shares no word with its question is lost. Needs a tokenizer.",
        low=1,
    )
    profile: Profile | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefilter is not None and self.chosen_by != "attention":
            raise ConfigError(
                f"prefilter is {self.prefilter}, but without the question there is nothing to filter by: leave it out, "
                "or set chosen_by='attention'"
            )
        inert = ["min_share", "link_len", "recap_len"] if self.rerank == "never" else []
        if inert and self.chosen_by == "surprisal":
            inert += ["score", "scoring_layers", "scoring_queries", "contrast", "unit", "neighbour_share"]
            inert += ["pooling", "sentence_weight"]
        for name in inert:
            value = getattr(self, name)
            if value and value != type(self).__dataclass_fields__[name].default:
                raise ConfigError(
                    f"{name} is {value!r}, but has no effect with rerank 'never' and chosen_by {self.chosen_by!r}: "
                    "leave it out, or set rerank='now'"
                )
        if self.unit == "sentence" and self.sentence_weight != type(self).sentence_weight:
            raise ConfigError(
                f"sentence_weight is {self.sentence_weight!r}, but has no effect where sentences are kept as a whole: "
                "leave it out, or set unit='neighbours'"
            )
        for name in ("link_len", "neighbour_share") if self.unit == "neighbours" else ():
            if (value := getattr(self, name)) not in (0, getattr(type(self), name)):
                raise ConfigError(
                    f"{name} is {value!r}, but has no effect where neighbours are the unit: leave it out, or set "
                    "unit='sentence'"
                )
        if self.profile is not None and self.scoring_layers != "profile":
            raise ConfigError(
                f"profile has no effect with scoring_layers {self.scoring_layers!r}: leave one of them out"
            )

    @property
    def candidate_pooling(self) -> int:
        """Neighbours whose maximum counts where the candidates are chosen: twice as many as at the reranking, if one is
        to follow."""
        return self.pooling if self.rerank == "never" else 2 * self.pooling + 1

    @classmethod
    def paper(cls, **changes: Any) -> MergeConfig:
        """HOMER exactly (docs/method.md): calibrated logits of the last token, every token by itself, the merged cache
        as it is. Needs a `calibration`; the bundled model's is found by itself."""
        return MergeConfig(**changes)


@dataclass(frozen=True, kw_only=True)
class MergeConfig(_Settings):
    """Settings of HOMER as published; the defaults are the paper's (docs/method.md, "The paper's settings")."""

    preset: ClassVar[str] = "paper"

    chunk_share: float = _share(0.5, "Default max_chunk_len as a share of the model's limit.")
    target_share: float = _share(0.5, "Default target_len as a share of the model's limit.")
    warmup_layers: int | None = _setting(None, "Layers before the first merge level; default 3/8 of the layers.", low=0)
    max_initial_chunk_len: int | None = _setting(
        None, "Longest first chunk in tokens; default the longest chunk.", low=2
    )
    retention: float = _share(0.5, "Share of a full chunk's context that is kept for the merge.")
    score: str = _setting("calibrated_logit", "How tokens are scored.", choices=SCORE_NAMES)
    scoring_queries: int | None = _setting(
        1, "Number of the last suffix tokens whose attention scores the context.", low=1
    )
    refinement: str = _setting(
        "propagative",
        "What lower layers keep of a reduced chunk: the tokens its last layer chose, everything, a random choice, or "
        "each layer's own (table 4b; all but the first need readout merged).",
        choices=("propagative", "none", "random", "per_layer_top_k"),
    )
    readout: str = _setting(
        "merged",
        "What the answer is read from: the merged cache, or the merged cache with its suffix run once more.",
        choices=("merged", "reencoded"),
    )
    calibration: Calibration | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refinement != "propagative" and self.readout != "merged":
            raise ConfigError(
                f"refinement is {self.refinement!r} with readout {self.readout!r}; it needs 'merged': set "
                "readout='merged', or leave refinement at 'propagative'"
            )
        for length, share in (("max_chunk_len", "chunk_share"), ("target_len", "target_share")):
            if getattr(self, length) is not None and getattr(self, share) != 0.5:
                raise ConfigError(f"{share} has no effect beside {length}: leave one of them out")
        if (first := self.max_initial_chunk_len) and (longest := self.max_chunk_len) and first > longest:
            raise ConfigError(f"max_initial_chunk_len is {first}, above max_chunk_len {longest}: lower it")


Config = HomerConfig | MergeConfig
PRESETS: dict[str, type[HomerConfig] | type[MergeConfig]] = {"default": HomerConfig, "paper": MergeConfig}


def public_fields(config: type[Any]) -> list[Field[Any]]:
    """The settings of a config's class that can be written as text, in order."""
    return [setting for setting in fields(config) if "help" in setting.metadata]


def parse_settings(preset: str, texts: dict[str, str]) -> Config:
    """A config from texts by setting name, as they come from a command line. Raises `ConfigError`."""
    if preset not in PRESETS:
        raise ConfigError(f"preset is {preset!r}; it must be one of {', '.join(PRESETS)}")
    kinds = {setting.name: kind_of(setting) for setting in public_fields(PRESETS[preset])}
    return PRESETS[preset](**parse_values(texts, kinds))


def parse_values(texts: Mapping[str, str], kinds: Mapping[str, type]) -> dict[str, Any]:
    """Texts by name as values of these kinds, those of no known name as they are. Raises `ConfigError`."""
    values: dict[str, Any] = {}
    for name, text in texts.items():
        kind = kinds.get(name, str)
        try:
            values[name] = count_of(text) if kind is int else kind(text)
        except ValueError:
            raise ConfigError(f"{name} is {text!r}; it must be a number") from None
    return values


def kind_of(setting: Field[Any]) -> type[int] | type[float] | type[str]:
    """The type of a setting's value."""
    return {"int": int, "float": float, "str": str}[str(setting.type).partition(" ")[0]]


def flag(name: str) -> str:
    """A setting as the command line's option."""
    return "--" + name.replace("_", "-")


def _check(setting: Field[Any], value: Any) -> None:
    """Raise `ConfigError` for a value of the wrong type or out of the setting's range."""
    name, facts, kind = setting.name, setting.metadata, kind_of(setting)
    if (value is None and setting.default is None) or (value is None and "None" in str(setting.type)):
        return
    if choices := facts.get("choices"):
        if not isinstance(value, str) or value not in choices:
            raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
        return
    low, high = facts["low"], facts["high"]
    right_type = not isinstance(value, bool) and isinstance(value, int if kind is int else int | float)
    if kind is int:
        if not right_type or value < low:
            raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least {low}")
    elif not right_type or not isfinite(value) or not (low < value if facts["above"] else low <= value) or value > high:
        span = f"above {low} and at most {high}" if facts["above"] else f"between {low} and {high}"
        raise ConfigError(f"{name} is {value!r}; it must be a number {span}")


def _unknown(config: type[Any], name: str) -> str:
    """What to say of a setting that this config does not have."""
    new = RENAMED.get(name)
    if new in config.__dataclass_fields__:
        return f"{name} is called {new} now: set {new}"
    other = MergeConfig if config is HomerConfig else HomerConfig
    if name in other.__dataclass_fields__:
        where = "HomerConfig.paper()" if other is MergeConfig else "HomerConfig()"
        return (
            f"{name} ({flag(name)}) is a setting of {where} and would have no effect here: leave it out, or take that "
            f"preset (--preset {other.preset})"
        )
    known = ", ".join(setting.name for setting in fields(config))
    return f"{name} is not a setting of {config.__name__}; it has {known}"
