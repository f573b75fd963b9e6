"""The page of a document: what is shaded is what was read, kept passages are reached, and no text is markup."""

import re
from html.parser import HTMLParser

import pytest

from homerlm import Homer
from homerlm.page import render
from homerlm.trace import READ, Fates, LevelTrace, kept_indices
from tiny import VOCAB
from words import tokenizer_of

DOCUMENT = " ".join(f"w{i % 90}" for i in range(300))


class _Parsed(HTMLParser):
    """The page as a reader's browser takes it: the document's text by class, links, and what is loaded."""

    def __init__(self, text):
        super().__init__()
        self.text, self.by_class, self.links, self.anchors, self.loaded = "", {}, [], [], []
        self._open, self._inside = [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "main":
            self._inside = True
        if self._inside:
            self._open.append(attrs.get("class"))
        if "id" in attrs:
            self.anchors.append(attrs["id"])
        if tag == "a":
            self.links.append(attrs["href"])
        self.loaded += [value for name, value in attrs.items() if name in ("src", "srcset", "data", "action")]
        self.loaded += [attrs["href"]] if tag == "link" else []

    def handle_endtag(self, tag):
        if tag == "main":
            self._inside = False
        if self._inside:
            self._open.pop()

    def handle_data(self, data):
        if self._inside:
            self.text += data
            self.by_class.setdefault(self._open[-1], []).append(data)


def _page(homer, document=DOCUMENT, question="w1 w2", names=("document.txt",), **options):
    trace = LevelTrace()
    answer = homer.ask(document, question, max_new_tokens=2, observer=trace, **options)
    return render(homer.tokenizer, document, list(names), question, answer, trace), answer


def _words(document, indices):
    return [document.split()[i] for i in indices]


def test_what_was_read_for_the_answer_is_shaded(text_homer):
    text, answer = _page(text_homer)
    page = _Parsed(text)
    assert page.text == DOCUMENT
    assert " ".join(page.by_class["read"]).split() == _words(DOCUMENT, kept_indices(answer.context))
    assert {"seen l0", "seen l1"} <= {*page.by_class}


def test_a_saved_document_is_shaded_by_this_answer(text_homer):
    text, answer = _page(text_homer, reuse=True)
    page = _Parsed(text)
    read = kept_indices(answer.context)
    assert page.text == DOCUMENT
    assert " ".join(page.by_class["read"]).split() == _words(DOCUMENT, read)
    assert {"seen l0", "seen l1"} <= {*page.by_class}
    assert f"read from {len(read)} of the document’s 300 tokens" in " ".join(text.split())


def test_every_kept_passage_has_a_link_that_leads_to_it(text_homer):
    text, _ = _page(text_homer)
    page = _Parsed(text)
    passages = re.findall(r'<mark class="read"', text)
    assert 0 < len(page.links) <= len(passages)
    assert page.links == [f"#kept-{i}" for i in range(1, len(page.links) + 1)]
    assert {link[1:] for link in page.links} == {anchor for anchor in page.anchors if anchor.startswith("kept-")}


def test_a_short_document_is_read_whole(text_homer):
    page = _Parsed(_page(text_homer, "w1 w2 w3")[0])
    assert page.by_class == {"read": ["w1 w2 w3"]}


def test_text_is_never_markup_and_nothing_is_loaded(text_homer):
    evil = "<script>alert(1)</script> & \"quoted\" 'too' </main></style><img src=x onerror=alert(1)> {{ 7 * 7 }}"
    text, _ = _page(text_homer, f"{evil} {DOCUMENT}", evil, [f"{evil}.txt"])
    page = _Parsed(text)
    assert page.text == f"{evil} {DOCUMENT}"
    assert page.loaded == []
    assert "<img" not in text
    assert text.count("<script") == 1
    assert not re.search(r"https?://", text)


def test_documents_are_named_and_both_colour_schemes_are_there(text_homer):
    text, _ = _page(text_homer, names=["a.txt", "b.pdf"])
    assert "a.txt" in text
    assert "b.pdf" in text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize("reuse", [False, True])
def test_fates_count_what_is_kept(text_homer, reuse):
    trace = LevelTrace()
    answer = text_homer.ask(DOCUMENT, "w1 w2", max_new_tokens=1, observer=trace, reuse=reuse)
    fates = Fates.of(trace, answer.context)
    assert len(fates.levels) == 300
    assert fates.count(READ) == len(kept_indices(answer.context))
    dropped = fates.levels[fates.levels < READ]
    assert fates.rounds == int(dropped.max())


def test_names_of_special_tokens_in_a_document_do_not_shift_its_passages(text_homer):
    """They are spelled out in ordinary tokens, more than the tokenizer alone makes of them."""
    tokenizer = tokenizer_of(VOCAB)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|x|>"]})
    homer = Homer(text_homer.model, tokenizer, text_homer.config)
    document = " ".join(f"w{i % 80} <|x|>" for i in range(150))
    text, answer = _page(homer, document)
    page = _Parsed(text)
    assert page.text == document
    words = [word for i in range(150) for word in (f"w{i % 80}", "<", "|x|>")]
    read = "".join(page.by_class["read"])
    assert re.findall(r"w\d+|<|\|x\|>", read) == [words[i] for i in kept_indices(answer.context)]
