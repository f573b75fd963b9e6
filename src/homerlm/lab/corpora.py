"""Text to calibrate and to try things on: Python's own documentation, offline; data sets of the hub where they can be
had."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from homerlm.errors import InputError

# To plant facts about, and words to make facts of.
CITIES = ("Lisbon", "Oslo", "Nairobi", "Quito", "Hanoi", "Perth", "Dublin", "Turin", "Lagos", "Kyoto", "Lima", "Austin")
NAMES = (
    *("Amara", "Bogdan", "Chiara", "Dmitri", "Eilidh", "Farid", "Greta", "Hakim", "Ingrid"),
    *("Jorge", "Katya", "Leila", "Mateo", "Nadia", "Oksana", "Priya", "Quentin", "Rashid"),
    *("Saskia", "Tomas", "Ulrike", "Viktor", "Wanda", "Ximena", "Yusuf", "Zofia", "Anders"),
    *("Beatriz", "Cedric", "Delphine", "Emeka", "Fumiko", "Gustav", "Helga", "Imani", "Jasper"),
)
COUNTS = ("nothing", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
ADJECTIVES = ("amber", "brisk", "calm", "dusty", "eager", "frosty", "gentle", "hollow", "ivory", "jolly", "keen")
NOUNS = ("anchor", "badger", "candle", "dagger", "engine", "falcon", "garden", "hammer", "island", "jacket", "kettle")


def named_texts(names: list[str]) -> tuple[list[str], str]:
    """Texts of files, of Python's documentation (`python`) or of the paper's books (`pg19`); what records call them."""
    from homerlm.documents.reading import read_document

    named: dict[str, Callable[[], list[str]]] = {"python": lambda: [python_documentation()], "pg19": pg19}
    texts = [text for name in names for text in (named[name]() if name in named else [read_document(name)])]
    return texts, ", ".join("Python documentation" if name == "python" else Path(name).name for name in names)


def python_documentation() -> str:
    """About 190,000 tokens of English that every Python carries: the topics of its `help()`."""
    return "\n\n".join(python_topics())


def python_topics() -> list[str]:
    """The same, topic by topic."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def wikitext103() -> list[str]:
    """Validation and test articles of WikiText-103, the paper's calibration text (section 4).

    Needs the package `datasets` and the hub; raises `InputError` with the alternative without them.
    """
    otherwise = "give texts of your own, or `python` for Python's documentation"
    name = "WikiText-103", "Salesforce/wikitext", "wikitext-103-raw-v1"
    return ["".join(from_hub(*name, split=split, otherwise=otherwise)["text"]) for split in ("validation", "test")]


def pg19() -> list[str]:
    """The test books of PG-19, the paper's text for perplexity (section 4.3). Raises `InputError` as `wikitext103`."""
    return list(from_hub("PG-19", "emozilla/pg19-test", split="test", otherwise="give text files of your own")["text"])


def json_lines(path: Path, form: str) -> list[Any]:
    """The values of a file of JSON lines. form: what it must be, for messages. Raises `InputError`."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); it must be {form}") from None


def from_hub(title: str, name: str, *config: str, split: str, otherwise: str) -> Any:
    """A split of a data set of the hub. Raises `InputError` that says what else to do."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(f'{title} needs a package: pip install "homerlm[wikitext]"; or {otherwise}') from error
    try:
        return load_dataset(name, *config, split=split)
    except Exception as error:
        raise InputError(f"{title} could not be fetched ({type(error).__name__}: {error}): {otherwise}") from error
