"""Text to calibrate and to try things on: Python's own documentation, offline; WikiText-103 where it can be had."""

from __future__ import annotations

from homerlm.errors import InputError

# To plant facts about.
CITIES = ("Lisbon", "Oslo", "Nairobi", "Quito", "Hanoi", "Perth", "Dublin", "Turin", "Lagos", "Kyoto", "Lima", "Austin")


def python_documentation() -> str:
    """About 190,000 tokens of English that every Python carries: the topics of its `help()`."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def wikitext103() -> list[str]:
    """Validation and test articles of WikiText-103, the paper's calibration text (section 4).

    Needs the package `datasets` and the hub; raises `InputError` with the alternative without them.
    """
    otherwise = "give texts of your own, or `python` for Python's documentation"
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(f'WikiText-103 needs a package: pip install "homerlm[wikitext]"; or {otherwise}') from error
    try:
        parts = [
            load_dataset("Salesforce/wikitext", "wikitext-103-raw-v1", split=name) for name in ("validation", "test")
        ]
    except Exception as error:
        raise InputError(f"WikiText-103 could not be fetched ({type(error).__name__}: {error}): {otherwise}") from error
    return ["".join(part["text"]) for part in parts]
