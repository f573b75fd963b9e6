"""Retrieval far past the model's limit: a passkey in filler, and a number in real prose, by HOMER and the plain model.

Writes one JSON line per sample and prints a table. Example:

    python benchmarks/retrieval.py --task passkey prose --lengths 8192 16384 32768 --samples 20 --output results/x.jsonl
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from homerlm import Homer, HomerConfig, load_model
from homerlm.corpora import CITIES, python_documentation

FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
PASSKEY_PREFIX = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n"
)
PASSKEY_SUFFIX = "What is the pass key? The pass key is"
PROSE_PREFIX = "A special magic number is hidden within the following text. Memorize it. I will quiz you about it.\n"


@dataclass(frozen=True)
class Sample:
    prefix: str
    context: str
    suffix: str
    answer: str
    depth: float


def passkey(tokenizer, tokens: int, rng: random.Random, _text: str) -> Sample:
    """The paper's prompt of at most `tokens` tokens (repeated filler packs a little tighter: about 96% of them)."""
    key = str(rng.randint(10000, 99999))
    needle = f"The pass key is {key}. Remember it. {key} is the pass key. "
    fixed = len(tokenizer(PASSKEY_PREFIX + needle + PASSKEY_SUFFIX).input_ids)
    repeats = max((tokens - fixed) // len(tokenizer(FILLER).input_ids), 1)
    before = rng.randint(0, repeats)
    context = FILLER * before + needle + FILLER * (repeats - before)
    return Sample(PASSKEY_PREFIX, context, PASSKEY_SUFFIX, key, before / repeats)


def prose(tokenizer, tokens: int, rng: random.Random, text: str, needles: int = 1) -> Sample:
    names = rng.sample(CITIES, needles)
    numbers = [str(rng.randint(1000000, 9999999)) for _ in names]
    start = rng.randint(0, max(len(text) - tokens * 8, 0))
    ids = tokenizer(text[start : start + tokens * 8], add_special_tokens=False).input_ids
    body = tokenizer.decode(ids[: tokens - 120 - 25 * needles])
    spots = [match.end() for match in re.finditer(r"[.?!]\s", body)] or [0]
    places = sorted(((rng.choice(spots), i) for i in range(needles)), reverse=True)
    for place, i in places:
        body = f"{body[:place]}The special magic number for {names[i]} is: {numbers[i]}. {body[place:]}"
    asked = rng.randrange(needles)
    depth = next(place for place, i in places if i == asked) / max(len(body), 1)
    suffix = (
        f"\n\nWhat is the special magic number for {names[asked]} mentioned in the provided text? "
        f"The special magic number for {names[asked]} mentioned in the provided text is"
    )
    return Sample(PROSE_PREFIX, body, suffix, numbers[asked], depth)


def prose4(tokenizer, tokens: int, rng: random.Random, text: str) -> Sample:
    return prose(tokenizer, tokens, rng, text, needles=4)


TASKS = {"passkey": passkey, "prose": prose, "prose4": prose4}


def ids(tokenizer, text: str) -> torch.Tensor:
    return torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])


def first_number(text: str) -> str | None:
    found = re.search(r"\d+", text.replace(",", ""))
    return found.group() if found else None


def ask_homer(homer: Homer, sample: Sample) -> tuple[str, dict]:
    tokenizer = homer.tokenizer
    parts = [ids(tokenizer, part) for part in (sample.prefix, sample.context, sample.suffix)]
    started = time.perf_counter()
    context = homer.compress(*parts)
    prefill = time.perf_counter() - started
    new = homer.generate(context, max_new_tokens=20, do_sample=False)
    answer_ids = parts[1][0].tolist()
    kept = digits_kept(tokenizer, answer_ids, context.token_indices[0].tolist(), parts[0].shape[1], sample.answer)
    return tokenizer.decode(new[0]), {"prefill_s": round(prefill, 2), "kept": len(context), "needle_kept": kept}


def digits_kept(tokenizer, context_ids: list[int], kept: list[int], offset: int, answer: str) -> float | None:
    """Share of the answer's tokens, wherever they stand in the context, that are left."""
    kept_set = set(kept)
    for lead in ("", " ", ": ", "is "):
        wanted = tokenizer(lead + answer, add_special_tokens=False).input_ids[-len(answer) :]
        spots = [i for i in range(len(context_ids)) if context_ids[i : i + len(wanted)] == wanted]
        if spots:
            tokens = [i + j + offset for i in spots for j in range(len(wanted))]
            return sum(t in kept_set for t in tokens) / len(tokens)
    return None


def ask_plain(model, tokenizer, sample: Sample) -> tuple[str, dict]:
    prompt = ids(tokenizer, sample.prefix + sample.context + sample.suffix)
    started = time.perf_counter()
    new = model.generate(prompt, max_new_tokens=20, do_sample=False)[0, prompt.shape[1] :]
    return tokenizer.decode(new), {"prefill_s": round(time.perf_counter() - started, 2), "kept": prompt.shape[1]}


def setting(text: str) -> tuple[str, int | str | None]:
    name, _, value = text.partition("=")
    return name, None if value == "None" else int(value) if value.lstrip("-").isdigit() else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub name, folder or .gguf; default the bundled model")
    parser.add_argument("--method", default="homer", choices=["homer", "homer-paper", "plain"])
    parser.add_argument("--rope", help="pi:2, ntk:4, yarn:2 ...")
    parser.add_argument("--task", nargs="+", default=["passkey", "prose"], choices=sorted(TASKS))
    parser.add_argument("--lengths", nargs="+", type=int, default=[8192, 16384, 32768])
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", type=Path, help="prose to hide numbers in; default Python's own documentation")
    parser.add_argument("--set", nargs="*", default=[], type=setting, metavar="FIELD=VALUE", help="HomerConfig fields")
    parser.add_argument("--output", type=Path, help="JSON lines, appended")
    args = parser.parse_args()
    model, tokenizer = load_model(args.model, rope=args.rope)
    build = HomerConfig.paper if args.method == "homer-paper" else HomerConfig
    homer = None if args.method == "plain" else Homer(model, tokenizer, build(**dict(args.set)))
    text = args.text.read_text() if args.text else python_documentation()
    for task in args.task:
        for length in args.lengths:
            right = []
            kept = []
            started = time.perf_counter()
            for i in range(args.samples):
                sample = TASKS[task](tokenizer, length, random.Random(f"{args.seed}/{task}/{length}/{i}"), text)
                answer, stats = ask_homer(homer, sample) if homer else ask_plain(model, tokenizer, sample)
                right.append(first_number(answer) == sample.answer)
                kept.append(stats.get("needle_kept"))
                record = {
                    "task": task, "length": length, "sample": i, "seed": args.seed, "method": args.method,
                    "settings": dict(args.set), "rope": args.rope, "depth": round(sample.depth, 3),
                    "expected": sample.answer, "answer": answer, "right": right[-1], **stats,
                    "torch": torch.__version__, "transformers": transformers.__version__,
                    "machine": platform.machine(), "text": args.text.name if args.text else "python documentation",
                }  # fmt: skip
                if args.output:
                    args.output.parent.mkdir(parents=True, exist_ok=True)
                    with args.output.open("a") as file:
                        file.write(json.dumps(record) + "\n")
            known = [k for k in kept if k is not None]
            share = f"{sum(known) / len(known):.2f}" if known else "-"
            seconds = (time.perf_counter() - started) / args.samples
            print(
                f"{args.method} {dict(args.set)} {task} {length}: {sum(right)}/{len(right)} right, "
                f"needle kept {share}, {seconds:.1f} s a sample",
                flush=True,
            )


if __name__ == "__main__":
    main()
