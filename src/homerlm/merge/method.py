"""HOMER as published: what runs when `compress` is called with `HomerConfig.paper()`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from homerlm.config import MergeConfig
from homerlm.context import CompactContext, Origin
from homerlm.errors import ConfigError
from homerlm.merge.plan import MergeLengths, MergePlan
from homerlm.merge.readout import READOUTS
from homerlm.merge.tree import Tree
from homerlm.method import Compressing
from homerlm.model.decoder import Decoder
from homerlm.prompt import PromptIds
from homerlm.score.calibration import Calibration
from homerlm.score.scores import SCORES
from homerlm.suffix import exchange_suffix


@dataclass(frozen=True)
class Merge:
    """The paper's method on one model. bias: (L, distances) of the calibration, None where the score needs none;
    origin: that of a context made now."""

    decoder: Decoder
    config: MergeConfig
    origin: Callable[[], Origin]
    bias: Tensor | None

    @classmethod
    def on(cls, decoder: Decoder, config: MergeConfig, origin: Callable[[], Origin]) -> Merge:
        """Raises `ConfigError` for settings that do not fit the model, or a score without its calibration."""
        return cls(decoder, config, origin, _bias(decoder, config, MergeLengths.of(config, decoder.shape)))

    @property
    def lengths(self) -> MergeLengths:
        return MergeLengths.of(self.config, self.decoder.shape)

    def plan(self, prefix_len: int, context_len: int, suffix_len: int, neutral_len: int = 0) -> MergePlan:  # noqa: ARG002
        return MergePlan.of(self.config, self.decoder.shape, prefix_len, context_len, suffix_len)

    def compress(self, prompt: PromptIds) -> Compressing:
        """The tree is walked depth first up to its root, whose cache is the context."""
        plan = self.plan(*prompt.lengths)
        tree = Tree(self.decoder, plan, prompt.prefix, prompt.context, prompt.suffix, self.bias)
        with self.decoder.session():
            root = yield from tree.walk()
            input_ids = tree.ids_of(root)
            state = READOUTS[self.config.readout](self.decoder, root, input_ids)
        return CompactContext(
            keys=state.keys,
            values=state.values,
            position_ids=state.position_ids,
            token_indices=root.token_indices,
            input_ids=input_ids,
            logits=state.logits,
            prefix_len=plan.prefix_len,
            suffix_len=plan.suffix_len,
            prompt_len=plan.prompt_len,
            model_config=self.decoder.config,
            origin=self.origin(),
        )

    def ask_again(
        self,
        context: CompactContext,
        suffix_ids: Tensor,
        neutral_ids: Tensor | None = None,  # noqa: ARG002
    ) -> CompactContext:
        """The suffix is exchanged; the document stays as it was kept."""
        return exchange_suffix(self.decoder, context, suffix_ids)


def _bias(decoder: Decoder, config: MergeConfig, lengths: MergeLengths) -> Tensor | None:
    """(L, distances) of the calibration that the score needs, given or bundled."""
    if not SCORES[config.score].calibrated:
        return None
    calibration = config.calibration
    if calibration is not None:
        if not isinstance(calibration, Calibration):
            raise ConfigError(
                f"calibration is {type(calibration).__name__}; it must be a Calibration: Calibration.load(path, model) "
                "reads one"
            )
        calibration.check(decoder.model)
    elif (calibration := Calibration.bundled(decoder.model)) is None:
        raise ConfigError(
            f"score {config.score!r} needs a calibration of this model: make one with `homer calibrate` or "
            "Calibration.measure, and pass it as calibration=..., or use score='softmax', which needs none"
        )
    distances, longest = calibration.bias.shape[1], lengths.max_chunk_len
    if distances < longest:
        raise ConfigError(
            f"the calibration covers distances below {distances}, but chunks may hold {longest} tokens: "
            f"lower max_chunk_len to {distances}, or calibrate with a longer length"
        )
    return calibration.bias
