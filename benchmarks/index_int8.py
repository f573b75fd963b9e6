"""What do int8 keys lose? Share of the text above the fact asked for, by an index of the profile's probes (a seed that
chose no heads), with keys in the model's own numbers and as int8; and how many of the best fifth of the units are the
same.

    python benchmarks/index_int8.py --texts 42
"""

from __future__ import annotations

import argparse
import json
from itertools import chain
from statistics import fmean

import torch

from homerlm import Homer, Index, load_model, prompt
from homerlm.index.asking import Search
from homerlm.index.scoring import scored
from homerlm.index.shards import joined_units
from homerlm.index.units import UnitScores, significance_of
from homerlm.profiling.measure import CHARACTERS
from homerlm.profiling.probes import Probe, probes
from homerlm.select.method import Select

SEED = 77


@torch.no_grad()
def significance(homer: Homer, index: Index, question: str) -> torch.Tensor:
    """(U,) of the index's units."""
    tokenizer, method = homer.tokenizer, homer.method
    assert tokenizer is not None
    assert isinstance(method, Select)
    suffix, neutral = (
        prompt.token_ids(tokenizer, text)
        for text in (prompt.affixes(tokenizer, question)[1], prompt.neutral(tokenizer))
    )
    asked = index.frame.question(suffix, neutral, suffix.shape[1])
    units = UnitScores(index.units, len(index))
    with homer.decoder.session():
        search = Search.of(method, index, asked)
        groups = scored(index, search.asked, method.config.score, index.blocks, homer.decoder.device)
        for (start, _), scores in chain.from_iterable(groups):
            units.add(start, scores)
    joined = joined_units(index, torch.arange(len(index.units)))
    return significance_of(units.sums, units.sizes, joined, method.config.neighbour_share)


def share_above(index: Index, significance: torch.Tensor, probe: Probe) -> float:
    """Share of the text's tokens in units above the worst unit of the fact."""
    sizes = torch.diff(index.units, append=torch.tensor([len(index)]))
    told = prompt.tokens_within(index.spans.tolist(), probe.spans)
    asked = torch.searchsorted(index.units, torch.tensor(told), right=True) - 1
    return float(sizes[significance > significance[asked].min()].sum() / sizes.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="name, folder or file; default the bundled model")
    parser.add_argument("--texts", type=int, default=42)
    given = parser.parse_args()
    homer = Homer(*load_model(given.model))
    homer.profile()
    shares: dict[bool, list[float]] = {False: [], True: []}
    same = []
    for probe in probes(CHARACTERS, given.texts, SEED):
        best = []
        for int8 in (False, True):
            index = homer.read(probe.text, int8=int8)
            found = significance(homer, index, probe.question)
            shares[int8].append(share_above(index, found, probe))
            best.append({*found.topk(max(len(found) // 5, 1)).indices.tolist()})
        same.append(len(best[0] & best[1]) / len(best[0]))
    means = {f"share_above_{'int8' if int8 else 'own'}": round(fmean(values), 4) for int8, values in shares.items()}
    print(json.dumps({"texts": given.texts, "seed": SEED, **means, "same_units_in_best_fifth": round(fmean(same), 4)}))


if __name__ == "__main__":
    main()
