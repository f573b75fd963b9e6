"""The profile of a model that is used for the first time: found, or measured and kept."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homerlm.config import Config, HomerConfig
from homerlm.errors import ConfigError, HomerError
from homerlm.passes import Event
from homerlm.profiling.measure import measuring
from homerlm.score.profile import Profile

SWITCH = "HOMERLM_AUTO_PROFILE"  # 0: no model is ever measured by itself


def with_known_profile(model: PreTrainedModel, config: Config) -> Config:
    """The config with the profile that it wants and lacks, where one is known; else the config itself. Raises
    `MismatchError` for a profile of another model, `ConfigError` for what is none."""
    if not isinstance(config, HomerConfig) or config.scoring_layers != "profile":
        return config
    if config.profile is not None:
        if not isinstance(config.profile, Profile):
            raise ConfigError(
                f"profile is {type(config.profile).__name__}; it must be a Profile: Profile.load(path) reads one"
            )
        config.profile.check(model)
        return config
    known = Profile.known(model)
    if known is None:
        return config
    _warn_if_weak(known)
    return replace(config, profile=known)


def can_profile(config: Config, tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """Whether a profile is wanted, not there, and can be measured."""
    wanted = isinstance(config, HomerConfig) and config.scoring_layers == "profile" and config.profile is None
    return wanted and tokenizer is not None and tokenizer.is_fast and os.environ.get(SWITCH) != "0"


def profiled(model: PreTrainedModel, tokenizer: Any) -> Generator[Event, None, Profile]:
    """Events of a measurement; its value is the profile, which is kept for next time."""
    steps = measuring(model, tokenizer)
    while True:
        try:
            progress = next(steps)
        except StopIteration as done:
            profile: Profile = done.value
            break
        left = "" if progress.seconds is None else f", {progress.seconds:,.0f} s left"
        yield Event(progress.read, progress.total, note=f"Measuring the heads of this model, once{left}")
    try:
        profile.keep()
    except (HomerError, OSError) as error:
        warnings.warn(f"the profile of this model could not be kept for next time: {error}", stacklevel=2)
    _warn_if_weak(profile)
    return profile


def _warn_if_weak(profile: Profile) -> None:
    if not profile.above_chance:
        warnings.warn(
            f"no attention head of {profile.model.name or profile.model.architecture} finds facts better than chance "
            f"(share of a text above them: {profile.share_above:.2f}); the layers above its middle choose instead, and "
            "answers from long documents may be poor",
            stacklevel=2,
        )
