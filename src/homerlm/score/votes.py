"""What layers say of a chunk's tokens, added up."""

from __future__ import annotations

from torch import Tensor

from homerlm.merge.tree import Selection


class Votes:
    """Sums what the voting layers say; the last layer's word counts where the selection names none."""

    def __init__(self, selection: Selection, position_ids: Tensor, layers: int) -> None:
        self.voters = selection.voters or range(layers - 1, layers)
        self.total: Tensor | None = None
        self._selection = selection
        self._position_ids = position_ids

    def add(self, layer: int, queries: Tensor, keys: Tensor, scaling: float) -> None:
        if layer in self.voters:
            vote = self._selection.judge(layer, queries, keys, scaling, self._position_ids)
            self.total = vote if self.total is None else self.total + vote
