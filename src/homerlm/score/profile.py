"""The profile of a model: which of its attention heads find what a question asks for, and how surely they do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from homerlm import storage
from homerlm.errors import CorruptFileError, HomerError, InputError, MismatchError
from homerlm.model.filecache import cache_folder
from homerlm.model.identity import ModelIdentity
from homerlm.score.embedding import Embedding
from homerlm.score.heads import Early, Head

KIND = "homerlm profile"
VERSION = 4
LISTS = ("reading", "reranking", "indexing")
EMBEDDINGS = ("reading_embedding", "indexing_embedding")
CHANCE = 0.35  # mean share of a text above the fact asked for; noise gives about a half


@dataclass(frozen=True, eq=False)
class Profile:
    """reading: heads that score the chunks of a document; reranking: those that score the candidates, deeper ones
    among them, since these are few tokens; indexing: those that find tokens by the keys that an index keeps, without
    having read them with the question; share_above: mean share of a text that scored above the fact asked for, on
    facts that the heads were not chosen by (0 is best, noise gives about 0.5); early: which tokens of a chunk need not
    run to the last reading head, or None where no head below it knows; reading_embedding, indexing_embedding: of
    sentences, which find what shares no word with its question, beside the heads of that name, or None where they do
    not help; `notes` how it was measured."""

    reading: tuple[Head, ...]
    reranking: tuple[Head, ...]
    indexing: tuple[Head, ...]
    share_above: float
    model: ModelIdentity
    early: Early | None = None
    reading_embedding: Embedding | None = None
    indexing_embedding: Embedding | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def above_chance(self) -> bool:
        """Whether its heads found facts better than noise would."""
        return self.share_above < CHANCE

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON to a file, complete or not at all. Raises `InputError` if it cannot be written."""
        with storage.replacing(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Raises `InputError` for a file that cannot be read, `CorruptFileError` for what is no profile."""
        try:
            return cls.from_dict(json.loads(storage.checked_path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        except InputError:
            raise
        except ValueError as error:
            raise CorruptFileError(f"{path} is no profile: {error}; make one with `homer profile`") from error

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        lists = {name: [[head.layer, head.index, head.weight] for head in getattr(self, name)] for name in LISTS}
        return {
            "kind": KIND,
            "version": VERSION,
            "model": self.model.to_dict(),
            "share_above": self.share_above,
            **lists,
            "early": None if self.early is None else self.early.to_json(),
            **{name: None if (one := getattr(self, name)) is None else one.to_json() for name in EMBEDDINGS},
            "notes": self.notes,
        }

    @classmethod
    def from_dict(cls, values: Any) -> Profile:
        """The inverse of `to_dict`; raises `CorruptFileError` for anything else."""
        if not isinstance(values, dict) or values.get("kind") != KIND or values.get("version") != VERSION:
            raise CorruptFileError(f"this is no profile of version {VERSION}: make one with `homer profile`")
        try:
            listed, share = [values[name] for name in LISTS], float(values["share_above"])
            identity = ModelIdentity.from_dict(values["model"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(f"the profile lacks {error}: make it again with `homer profile`") from error
        reading, reranking, indexing = (tuple(map(Head.from_json, one)) for one in listed)
        early = Early.from_json(values["early"]) if values.get("early") else None
        at_once, kept = (Embedding.from_json(values[name]) if values.get(name) else None for name in EMBEDDINGS)
        notes = dict(values.get("notes") or {})
        return cls(reading, reranking, indexing, share, identity, early, at_once, kept, notes)

    def check(self, model: PreTrainedModel) -> None:
        """Raise `MismatchError` if this profile was measured on another model. RoPE scaling may differ."""
        given = ModelIdentity.of(model)
        if not self._fits(given):
            raise MismatchError(
                f"this profile belongs to {self.model.name or self.model.architecture} (weights "
                f"{self.model.weights[:12]}), but the model given has weights {given.weights[:12]}: run `homer profile`"
            )

    @classmethod
    def known(cls, model: PreTrainedModel) -> Profile | None:
        """The profile that ships with homerlm for this very model, or the one that was measured here before."""
        given = ModelIdentity.of(model)
        for profile in (*_bundled(), *_cached(given)):
            if profile._fits(given):
                return profile
        return None

    @classmethod
    def of_default_model(cls) -> Profile:
        """The bundled model's, without looking at its weights."""
        return next(_bundled())

    def keep(self) -> Path:
        """Save it in the user's cache, where `known` finds it."""
        path = _cache_path(self.model)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.save(path)
        return path

    def _fits(self, model: ModelIdentity) -> bool:
        return (self.model.architecture, self.model.weights) == (model.architecture, model.weights)


def _bundled() -> Iterator[Profile]:
    folder = resources.files("homerlm").joinpath("data", "profiles")
    for entry in folder.iterdir():
        if entry.name.endswith(".json"):
            yield Profile.from_dict(json.loads(entry.read_text(encoding="utf-8")))


def _cached(model: ModelIdentity) -> Iterable[Profile]:
    try:
        return [Profile.load(_cache_path(model))]
    except HomerError:
        return []


def _cache_path(model: ModelIdentity) -> Path:
    return cache_folder() / "profiles" / f"{model.weights[:40]}.json"
