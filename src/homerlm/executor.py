"""The protocol of what reads chunks: in this process, on several devices of a machine, or on machines of a cluster.

What is chosen in a chunk depends on that chunk and the question alone, so reading is a map: token ids in, scores or
rows of an index out. `homerlm.scale` has the executors that do it elsewhere.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homerlm.errors import InputError
from homerlm.model.decoder import Decoder
from homerlm.model.identity import ModelIdentity, tokenizer_fingerprint
from homerlm.score.sentences import Sentences

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model as work finds it where it is done. tokenizer: None where sentences are not known."""

    decoder: Decoder
    tokenizer: PreTrainedTokenizerBase | None

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> LoadedModel:
        """Raises `UnsupportedModelError`."""
        return cls(Decoder(model), tokenizer)

    @cached_property
    def sentences(self) -> Sentences | None:
        """Made when first needed: it looks at every token of the vocabulary."""
        if self.tokenizer is None:
            return None
        vocab = self.decoder.model.get_input_embeddings().weight.shape[0]
        return Sentences(self.tokenizer, vocab, self.decoder.device)

    @property
    def facts(self) -> dict[str, str | None]:
        """What two copies of a model must have in common to give the same scores, by name."""
        model = self.decoder.model
        identity = ModelIdentity.of(model)
        found = {name: getattr(identity, name) for name in ("architecture", "weights", "rope")}
        return found | {"dtype": str(model.dtype), "tokenizer": tokenizer_fingerprint(self.tokenizer)}

    @torch.no_grad()
    def run(self, work: Work[Item, Value], item: Item) -> Value:
        """The value of work on one item."""
        with self.decoder.session():
            return work(self, item)


class Work(Protocol[Item, Value]):  # type: ignore[misc]
    """What is done with each item, such as the scores of a chunk. It can be pickled, needs nothing but the model that
    it is given, and its value depends on the item alone: it may be done twice."""

    def __call__(self, model: LoadedModel, item: Item, /) -> Value: ...


class Executor(Protocol):
    """Where work is done."""

    def map(
        self, here: LoadedModel, work: Work[Item, Value], items: Iterable[Item], homes: Sequence[int] | None = None
    ) -> Iterator[Value | None]:
        """The value of work on each item, in the items' order; None wherever there is nothing yet, every 0.05 s or so,
        so that others get their turn. `here`: the caller's own model. homes: a number for each item; those of one
        number are done by the same worker as far as possible, for it keeps what they have in common.

        Closing the iterator, where it is a generator, stops the work: what runs comes to the end of its item, and no
        further one begins. Raises what the work raises, at its item's place, and `MismatchError` where the workers'
        model is another one.
        """
        ...


class InProcess:
    """Work done by the caller, with the caller's model, one item after the other as they are asked for."""

    def map(
        self,
        here: LoadedModel,
        work: Work[Item, Value],
        items: Iterable[Item],
        homes: Sequence[int] | None = None,  # noqa: ARG002
    ) -> Iterator[Value | None]:
        for item in items:
            yield here.run(work, item)


IN_PROCESS = InProcess()


def values_of(
    executor: Executor,
    here: LoadedModel,
    work: Work[Item, Value],
    items: Iterable[Item],
    count: int,
    homes: Sequence[int] | None = None,
) -> Generator[Value | None, None, None]:
    """`executor.map` over so many items; closing this closes it. Raises `InputError` where an executor gives fewer or
    more values than there are items: an index would miss what it does not say."""
    given = 0
    with ExitStack() as stack:
        values = executor.map(here, work, items, homes)
        if hasattr(values, "close"):
            stack.callback(values.close)
        for value in values:
            given += value is not None
            if given > count:
                break
            yield value
    if given != count:
        number = f"more than {count}" if given > count else given
        raise InputError(
            f"the executor {type(executor).__name__} gave {number} values for {count} items: its map has to yield one "
            "for each, in their order, and nothing else but None"
        )
