"""A folder of static embeddings for `--methods embed:path=FOLDER`, made of a language model's input embeddings where no
trained ones are at hand: the directions in which the vocabulary differs most but for those that all words share, each
token weighted by how rare it is in a text. Needs the package model2vec. Example:

    python benchmarks/static_embeddings.py --text novels.txt --output static
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from model2vec import StaticModel

from homerlm import load_model
from homerlm.prompt import token_ids

USUAL = 1e-3  # a token of this share of the text counts half, as in smooth inverse frequency (Arora et al. 2017)
SHARED = 3  # leading directions, which tell words apart least (Mu and Viswanath 2018)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default the bundled one")
    parser.add_argument("--text", type=Path, required=True, help="that tokens are counted in")
    parser.add_argument("--size", type=int, default=256, help="of a vector")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    model, tokenizer = load_model(options.model)
    ids = token_ids(tokenizer, options.text.read_text())
    vectors = model.get_input_embeddings().weight.detach().float()[: len(tokenizer)]
    counts = torch.bincount(ids.flatten(), minlength=len(vectors))[: len(vectors)]
    centred = vectors - vectors.mean(0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -options.size - SHARED : -SHARED]
    weights = USUAL / (USUAL + counts / counts.sum())
    StaticModel(
        vectors=(centred @ directions * weights[:, None]).numpy(), tokenizer=tokenizer.backend_tokenizer
    ).save_pretrained(options.output)


if __name__ == "__main__":
    main()
