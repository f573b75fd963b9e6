"""Passages by static embeddings: each text the mean of its tokens' vectors, through the package model2vec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from homerlm.errors import ConfigError
from homerlm.lab.rivals.passages import Span
from homerlm.lab.samples import Asked


class Embeddings:
    """A scorer by the cosine of question and passage, with the model in a folder. Raises `ConfigError` without the
    package or the folder."""

    def __init__(self, path: str) -> None:
        try:
            from model2vec import StaticModel
        except ImportError as error:
            raise ConfigError("embed needs the package model2vec: pip install model2vec") from error
        if not Path(path).is_dir():
            raise ConfigError(f"path is {path!r}; it must be the folder of a static model, as model2vec saves it")
        self._model = StaticModel.from_pretrained(path)

    def __call__(self, asked: Asked, _spans: Sequence[Span], texts: list[str]) -> np.ndarray:
        vectors = self._model.encode([asked.question, *texts], show_progress_bar=False)
        lengths = np.linalg.norm(vectors, axis=1)
        unit = vectors / np.where(lengths > 0, lengths, 1)[:, None]
        similarity: np.ndarray = unit[1:] @ unit[0]
        return similarity
