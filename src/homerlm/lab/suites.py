"""Which settings are changed one at a time: the rows of `homer eval ablation` and `homer eval sensitivity`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from homerlm.errors import InputError
from homerlm.lab.methods import Method

# Layers picked on the bundled model, all heads, no neutral question, neighbours kept together.
FORMER_DEFAULT = "homer:scoring_layers=middle,score=mean_square,contrast=none,unit=neighbours,link_len=0"
ABLATION = {  # the report's row: the settings that differ; tables 4a and 4b on the paper's preset, then our own
    "score: random": "homer-paper:score=random",
    "score: attention": "homer-paper:score=logit",
    "score: attention+calibration": "homer-paper",
    "refinement: none": "homer-paper:refinement=none",
    "refinement: random": "homer-paper:refinement=random",
    "refinement: layer-wise top-k": "homer-paper:refinement=per_layer_top_k",
    "refinement: propagative": "homer-paper",
    "default preset": "homer",
    "default, no reranking": "homer:rerank=never",
    "default, no recap": "homer:recap_len=0",
    "default, no least share": "homer:min_share=0",
    "default, no links": "homer:link_len=0",
    "default, nothing for neighbours": "homer:neighbour_share=0",
    "default, neither recap nor least share": "homer:recap_len=0,min_share=0",
    "default, no neutral question": "homer:contrast=none",
    "default, neighbours instead of sentences": "homer:unit=neighbours",
    "default, layers above the middle score": "homer:scoring_layers=middle",
    "default, upper half scores": "homer:scoring_layers=upper_half",
    "default, all layers score": "homer:scoring_layers=all",
    "default, last token asks": "homer:scoring_queries=1",
    "default, mean over suffix": "homer:score=softmax",
    "former default": FORMER_DEFAULT,
}


def ablation_rows(beginnings: Sequence[str]) -> dict[str, str]:
    """The rows of `ABLATION` whose names begin with any of these; all of them for none. Raises `InputError`."""
    for start in beginnings:
        if not any(label.startswith(start) for label in ABLATION):
            raise InputError(f"no row of the ablation begins with {start!r}; they are: {', '.join(ABLATION)}")
    return {row: method for row, method in ABLATION.items() if not beginnings or row.startswith(tuple(beginnings))}


def sweep(method: str, limit: int, layers: int) -> dict[str, str]:
    """The sensitivity rows for a model: each length, the warm-up and the share kept, one at a time; of a method those
    settings that it has."""
    base = Method.parse(method)
    values: dict[str, list[float]] = {
        "max_chunk_len": [limit // n for n in (16, 8, 4, 2)],
        "target_len": [limit // n for n in (32, 16, 8, 4, 2)],
        "warmup_layers": sorted({round(layers * share) for share in (0.1, 0.25, 0.375, 0.5, 0.6)}),
        "retention": [0.125, 0.25, 0.5, 0.75, 1.0],
    }
    return {
        f"{name}={value}": str(replace(base, settings=(*base.settings, (name, value))))
        for name, choices in values.items()
        if hasattr(base.config(), name)
        for value in choices
    }
