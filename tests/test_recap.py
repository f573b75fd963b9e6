"""The recap: the best passages once more, right before the question."""

import pytest
import torch

from homerlm import Homer, HomerConfig
from homerlm.merge.chunk import Chunk
from homerlm.select.recap import with_recap
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


def _again(chunk, room):
    """Original indices of what is repeated."""
    before, after = len(chunk), with_recap(chunk, room)
    return after.token_indices[0].tolist()[before - 1 : -1]


def test_the_best_passages_stand_before_the_question_the_best_one_last():
    #              0    1    2    3    4    5    6
    scores = [0.9, 0.8, 0.1, 0.2, 0.5, 0.6, 0.1]
    places = [10, 11, 12, 20, 30, 31, 40]
    chunk = with_recap(_chunk(scores, places), 5)
    assert chunk.token_indices[0].tolist() == [0, 1, *places, 30, 31, 10, 11, 12, 99]
    assert chunk.hidden[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 2, 3, 4, 9]


def test_tokens_apart_in_the_document_are_passages_of_their_own():
    assert _again(_chunk([0.5, 0.9, 0.7], [10, 20, 30]), 3) == [10, 30, 20]


@pytest.mark.parametrize("room", [3, 4])
def test_a_passage_that_does_not_fit_whole_is_left_out(room):
    assert _again(_chunk([0.9, 0.5, 0.5, 0.8, 0.7], [10, 11, 12, 20, 21]), room) == [10, 11, 12]


def test_of_a_passage_longer_than_the_room_its_best_stretch_comes():
    assert _again(_chunk([0.9, 0.1, 0.1, 0.8, 0.7], [10, 11, 12, 13, 14]), 2) == [13, 14]


def test_rows_repeat_as_much_as_the_row_that_repeats_most():
    first, second = _chunk([0.9, 0.1, 0.2, 0.1], [10, 11, 12, 13]), _chunk([0.1, 0.2, 0.8, 0.3], [10, 11, 20, 31])
    both = Chunk(
        *(
            torch.cat([getattr(c, name) for c in (first, second)])
            for name in ("hidden", "position_ids", "token_indices")
        ),
        prefix_len=2,
        suffix_len=1,
        scores=torch.cat([first.scores, second.scores]),
    )
    assert with_recap(both, 4).token_indices[:, 6:-1].tolist() == [[10, 11, 12, 13], [10, 11, 31, 20]]
    assert with_recap(both, 3).token_indices[:, 6:-1].tolist() == [[10, 11, 12], [11, 31, 20]]


@pytest.mark.parametrize("room", [0, 50])
def test_nothing_or_more_than_there_is(room):
    chunk = _chunk([0.5, 0.9, 0.7], [10, 11, 12])
    assert _again(chunk, room) == ([] if not room else [10, 11, 12])


SIZES = {"max_chunk_len": 60, "target_len": 40, "warmup_layers": 2, "pooling": 3, "floor": 0.0}


@pytest.mark.parametrize(("recap", "document_len"), [(10, 25), (1000, 20), (0, 35)])
def test_the_cache_stays_within_its_target(recap, document_len):
    context = Homer(llama(), None, HomerConfig(**SIZES, recap_len=recap)).compress(*prompt(context=300))
    kept = context.token_indices[0].tolist()
    document, repeated, question = kept[:document_len], kept[document_len:-5], kept[-5:]
    assert len(context) <= 40
    assert document == sorted(set(document))
    assert set(repeated) <= set(document[4:])
    assert (0 < len(set(repeated)) <= recap) if recap else not repeated
    assert question == list(range(304, 309))


@pytest.mark.parametrize("changes", [{"second_look": "never"}, {"readout": "reencoded"}, {"readout": "merged"}])
def test_without_a_second_look_every_token_is_read_once(changes):
    context = Homer(llama(), None, HomerConfig(**(SIZES | changes))).compress(*prompt(context=300))
    kept = context.token_indices[0].tolist()
    assert len(context) == 40
    assert kept == sorted(set(kept))
