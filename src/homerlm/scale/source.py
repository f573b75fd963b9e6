"""Where workers get the model from."""

from __future__ import annotations

from dataclasses import dataclass

from homerlm.executor import LoadedModel
from homerlm.model.loading import load_model


@dataclass(frozen=True)
class ModelSource:
    """`load_model`'s arguments: name (None: the bundled model), rope, dtype and, where it is not a worker's GPU, the
    device. A folder or file must be there on every machine."""

    name: str | None = None
    rope: str | None = None
    dtype: str = "auto"
    device: str | None = None

    def load(self, device: str | None = None) -> LoadedModel:
        """On `device`, default the source's own. Raises `ModelLoadError`, `OutOfMemoryError`, `ConfigError`."""
        place = device or self.device
        placed = {} if place is None else {"device_map": place}
        return LoadedModel.of(*load_model(self.name, rope=self.rope, dtype=self.dtype, **placed))
