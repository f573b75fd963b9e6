"""The memory that a plan predicts, against what tensors take, for every family."""

import warnings

import pytest
import torch

import families
from homerlm import Homer, HomerConfig
from homerlm.lab.measure import peak_of_tensors
from homerlm.passes import peak_bytes

# A config does not tell how a family runs its experts (gpt_oss: all of them, on a CPU): within a factor of 2.5.
LOW, HIGH = 0.4, 2.0


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize("family", families.SUPPORTED, ids=lambda family: family.name)
def test_the_predicted_peak_is_near_the_measured_one(family, preset):
    if not family.available():
        pytest.skip(f"this transformers has no {family.name} that runs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = family.build()
    everywhere = None not in Homer(model).decoder.shape.windows  # chunks of at most the window
    sizes = {"max_chunk_len": 24, "target_len": 20} if everywhere else {"max_chunk_len": 300, "target_len": 100}
    lengths = (2, 60, 3) if everywhere else (5, 500, 6)
    if preset == "paper":
        config = HomerConfig.paper(**sizes, warmup_layers=1, score="softmax")
        lengths = (2, 38, 3) if everywhere else lengths  # a tree that four layers allow
    else:
        config = HomerConfig(**sizes)
    homer = Homer(model, None, config)
    ids = [torch.randint(3, families.VOCAB, (1, n), generator=torch.Generator().manual_seed(n)) for n in lengths]
    measured = peak_of_tensors(lambda: homer.compress(*ids))
    predicted = peak_bytes(homer.plan(*lengths), homer.decoder.shape)
    assert LOW < predicted / measured < HIGH


def test_it_does_not_grow_with_the_document_nor_with_the_limit():
    from dataclasses import replace

    from homerlm.model.shape import DecoderShape
    from homerlm.select.plan import SelectPlan

    small = DecoderShape(8192, (None,) * 30, 576, 1536, 9, 3, 64, 49152, 2)
    peaks = {
        peak_bytes(SelectPlan.of(HomerConfig(), shape, 20, tokens, 30), shape)
        for shape in (small, replace(small, limit=1_000_000))
        for tokens in (50_000, 5_000_000)
    }
    assert len(peaks) == 1
    assert peaks.pop() < 60e6
