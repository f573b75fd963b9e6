"""The recap: the best passages once more, right before the question."""

import pytest
import torch

from homerlm import Homer, HomerConfig
from homerlm.chunk import Chunk
from homerlm.recap import recap_len, with_recap
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


def test_the_cache_stays_within_its_target():
    ids = prompt(context=300)
    config = HomerConfig(max_chunk_len=60, target_len=50, warmup_layers=2, recap_share=0.25)
    context = Homer(llama(), None, config).compress(*ids)
    again = recap_len(0.25, 50, 9)
    assert (len(context), again) == (50, 10)
    kept = context.token_indices[0].tolist()
    assert len(set(kept)) == 40
    assert kept[: -5 - again] == sorted(set(kept[: -5 - again]))
    assert set(kept[-5 - again : -5]) <= set(kept[: -5 - again])
    assert kept[-5:] == list(range(304, 309))


@pytest.mark.parametrize("changes", [{"recap_share": 0.0}, {"readout": "reencoded"}, {"readout": "merged"}])
def test_without_a_recap_every_token_is_read_once(changes):
    config = HomerConfig(**({"max_chunk_len": 60, "target_len": 50, "warmup_layers": 2} | changes))
    context = Homer(llama(), None, config).compress(*prompt(context=300))
    kept = context.token_indices[0].tolist()
    assert len(context) == 50
    assert kept == sorted(set(kept))


def test_what_fits_the_target_is_read_as_it_is():
    model, ids = llama(), prompt(context=40)
    config = HomerConfig(max_chunk_len=60, target_len=49, warmup_layers=2, recap_share=0.5)
    context = Homer(model, None, config).compress(*ids)
    assert context.token_indices[0].tolist() == list(range(49))
    with torch.no_grad():
        plain = model(torch.cat(ids, dim=1)).logits[:, -1]
    torch.testing.assert_close(context.logits, plain, atol=1e-4, rtol=1e-4)
