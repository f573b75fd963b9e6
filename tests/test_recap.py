"""The recap: the best passages once more, right before the question."""

import pytest
import torch

from homerlm import Homer, HomerConfig
from homerlm.chunk import Chunk
from homerlm.recap import with_recap
from tiny import llama, prompt


def _chunk(scores, places, prefix=2, suffix=1):
    length = prefix + len(places) + suffix
    indices = torch.tensor([[*range(prefix), *places, 99]])
    marks = torch.arange(length, dtype=torch.float)
    return Chunk(
        hidden=marks[None, :, None],
        position_ids=torch.arange(length)[None],
        token_indices=indices,
        prefix_len=prefix,
        suffix_len=suffix,
        scores=torch.tensor([[0.0] * prefix + scores + [0.0] * suffix]),
    )


def test_the_best_passages_stand_before_the_question_the_best_one_last():
    #              0    1    2    3    4    5    6
    scores = [0.9, 0.8, 0.1, 0.2, 0.5, 0.6, 0.1]
    places = [10, 11, 12, 20, 30, 31, 40]
    chunk = with_recap(_chunk(scores, places), 4, pooling=1)
    assert chunk.token_indices[0].tolist() == [0, 1, *places, 30, 31, 10, 11, 99]
    assert chunk.hidden[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 2, 3, 9]


def test_tokens_apart_in_the_document_are_passages_of_their_own():
    chunk = with_recap(_chunk([0.5, 0.9, 0.7], [10, 20, 30]), 3, pooling=1)
    assert chunk.token_indices[0].tolist()[5:-1] == [10, 30, 20]


def test_every_row_has_its_own_passages():
    first, second = _chunk([0.9, 0.1, 0.2], [10, 11, 12]), _chunk([0.1, 0.2, 0.8], [10, 11, 12])
    both = Chunk(
        *(
            torch.cat([getattr(c, name) for c in (first, second)])
            for name in ("hidden", "position_ids", "token_indices")
        ),
        prefix_len=2,
        suffix_len=1,
        scores=torch.cat([first.scores, second.scores]),
    )
    assert with_recap(both, 1, pooling=1).token_indices[:, -2].tolist() == [10, 12]


@pytest.mark.parametrize("count", [0, 50])
def test_nothing_or_more_than_there_is(count):
    chunk = _chunk([0.5, 0.9, 0.7], [10, 11, 12])
    assert with_recap(chunk, count, pooling=1).token_indices[0].tolist() == (
        [0, 1, 10, 11, 12, 99] if not count else [0, 1, 10, 11, 12, 10, 11, 12, 99]
    )


SIZES = {"max_chunk_len": 60, "target_len": 40, "warmup_layers": 2, "pooling": 3, "floor": 0.0}


@pytest.mark.parametrize(("recap", "again"), [(10, 10), (1000, 15), (0, 0)])
def test_the_cache_stays_within_its_target(recap, again):
    context = Homer(llama(), None, HomerConfig(**SIZES, recap_len=recap)).compress(*prompt(context=300))
    kept = context.token_indices[0].tolist()
    assert len(context) == 40
    document, repeated, question = kept[: 35 - again], kept[35 - again : 35], kept[35:]
    assert document == sorted(set(document))
    assert set(repeated) <= set(document[4:])
    assert len(set(repeated)) == again
    assert question == list(range(304, 309))


@pytest.mark.parametrize("changes", [{"looks": 1}, {"readout": "reencoded"}, {"readout": "merged"}])
def test_without_a_second_look_every_token_is_read_once(changes):
    context = Homer(llama(), None, HomerConfig(**(SIZES | changes))).compress(*prompt(context=300))
    kept = context.token_indices[0].tolist()
    assert len(context) == 40
    assert kept == sorted(set(kept))
