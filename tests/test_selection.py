"""The text that is chosen for a question: passages of the document, at the places that are told."""

import json

import pytest

from command import WORDS
from homerlm import Homer, HomerConfig
from homerlm.documents import DocumentSpan
from homerlm.errors import ConfigError, InputError
from homerlm.selection import Excerpt, Selection, excerpts
from homerlm.trace import kept_indices
from tiny import VOCAB, llama
from words import tokenizer_of

SIZES = {"max_chunk_len": 64, "pooling": 3}
QUESTION = "w1 w2"
FLAGS = ["-m", "MODEL", "--max-chunk-len", "64", "--pooling", "3"]


@pytest.fixture(scope="module")
def homer(words):
    return Homer(llama(), words, HomerConfig(**SIZES))


class TestExcerpts:
    DOCUMENT = "one two  three\n\nfour five"
    SPANS = ((0, 3), (4, 7), (9, 14), (16, 20), (21, 25))

    @pytest.mark.parametrize(
        ("kept", "expected"),
        [
            ([], []),
            ([1], [(4, 7)]),
            ([0, 2], [(0, 3), (9, 14)]),
            ([1, 2, 3], [(4, 20)]),
            ([0, 1, 2, 3, 4], [(0, 25)]),
        ],
    )
    def test_neighbours_are_one_whatever_white_space_is_between_them(self, kept, expected):
        found = list(excerpts(self.DOCUMENT, self.SPANS, kept))
        assert [(one.start, one.end) for one in found] == expected
        assert [one.text for one in found] == [self.DOCUMENT[start:end] for start, end in expected]

    def test_a_blank_token_that_was_left_out_parts_nothing(self):
        spans = ((0, 1), (1, 4), (4, 5))
        assert [one.text for one in excerpts("a \n b", spans, [0, 2])] == ["a \n b"]
        assert [one.text for one in excerpts("a \n b", spans, [1])] == []

    def test_white_space_around_a_passage_is_left_out(self):
        assert [(one.start, one.end) for one in excerpts("a b c", ((0, 1), (1, 3), (3, 5)), [1])] == [(2, 3)]

    def test_tokens_that_share_a_character_give_it_once(self):
        assert [(one.start, one.end) for one in excerpts("日本", ((0, 2), (1, 2), (1, 2)), [0, 2])] == [(0, 2)]


class TestSelect:
    @pytest.mark.parametrize("tokens", [20, 60, 200])
    def test_gives_so_many_tokens_in_the_documents_order(self, homer, tokens):
        found = homer.select(WORDS, QUESTION, tokens=tokens)
        assert found.tokens == tokens
        assert found.document_tokens == 300
        assert sum(len(one.text.split()) for one in found.passages) == tokens
        assert all(WORDS[one.start : one.end] == one.text for one in found.passages)
        assert all(a.end < b.start for a, b in zip(found.passages, found.passages[1:], strict=False))

    def test_chooses_what_an_answer_of_that_length_is_read_from(self, homer, words):
        found = homer.select(WORDS, QUESTION, tokens=30)
        short = homer.ask("", QUESTION, max_new_tokens=1).context
        config = HomerConfig(**SIZES, target_len=30 + short.prefix_len + short.suffix_len, min_share=0, recap_len=0)
        kept = kept_indices(Homer(homer.model, words, config).ask(WORDS, QUESTION, max_new_tokens=1).context)
        assert " ".join(one.text for one in found.passages).split() == [WORDS.split()[i] for i in kept]

    def test_a_share_keeps_only_the_best(self, homer):
        assert homer.select(WORDS, QUESTION, tokens=80, min_share=1.0).tokens < 80

    def test_a_short_document_comes_whole(self, homer):
        (only,) = homer.select(" w1 w2  w3\n", QUESTION, tokens=60).passages
        assert (only.start, only.end, only.text) == (1, 10, "w1 w2  w3")
        assert homer.select("", QUESTION, tokens=60).passages == ()

    @pytest.mark.parametrize("settings", [{"rerank": "never"}, {"rerank": "later"}, {"recap_len": 8}])
    def test_other_settings_give_as_many(self, words, settings):
        homer = Homer(llama(), words, HomerConfig(**SIZES, **settings))
        assert homer.select(WORDS, QUESTION, tokens=40).tokens == 40

    def test_the_papers_preset_gives_what_its_tree_keeps(self, words):
        config = HomerConfig.paper(max_chunk_len=64, target_share=0.4, warmup_layers=2, score="softmax")
        found = Homer(llama(), words, config).select(WORDS, QUESTION, tokens=30)
        assert found.tokens == sum(len(one.text.split()) for one in found.passages) == 30
        with pytest.raises(ConfigError, match="min_share"):
            Homer(llama(), words, config).select(WORDS, QUESTION, tokens=30, min_share=0.5)

    def test_names_of_special_tokens_are_text_like_any_other(self):
        tokenizer = tokenizer_of(VOCAB)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|x|>"]})
        document = " ".join(f"w{i % 80} <|x|>" for i in range(150))
        found = Homer(llama(), tokenizer, HomerConfig(**SIZES)).select(document, QUESTION, tokens=50)
        assert all(document[one.start : one.end] == one.text for one in found.passages)
        assert found.document_tokens == 450

    def test_a_path_is_read(self, homer, tmp_path):
        (tmp_path / "d.txt").write_text(WORDS)
        assert homer.select(tmp_path / "d.txt", QUESTION, tokens=40) == homer.select(WORDS, QUESTION, tokens=40)

    @pytest.mark.parametrize("tokens", [0, -1, 2.5, True, 513])
    def test_a_number_that_cannot_be_is_refused(self, homer, tokens):
        with pytest.raises(InputError, match=f"tokens is {tokens}"):
            homer.select(WORDS, QUESTION, tokens=tokens)

    def test_a_compressed_document_has_no_text(self, homer):
        with pytest.raises(InputError, match="compressed"):
            homer.select(homer.ask(WORDS, QUESTION, max_new_tokens=1).context, QUESTION, tokens=40)


class TestByDocument:
    TEXT = "# a\n\none two\n\n# b\n\nthree"  # of "\n\none two" and "three"
    SPANS = (DocumentSpan("a", 5, 12, 2), DocumentSpan("b", 19, 24, 0))

    @pytest.mark.parametrize(
        ("place", "expected"),
        [
            ((9, 12), [(6, 9, "two", "a")]),
            ((2, 8), [(2, 5, "one", "a")]),
            ((9, 21), [(6, 9, "two", "a"), (0, 2, "th", "b")]),
            ((8, 13), [(6, 9, "two", "a")]),
            ((14, 17), []),
        ],
    )
    def test_a_passage_is_cut_at_its_documents_ends_and_found_there(self, place, expected):
        passage = Excerpt(*place, self.TEXT[slice(*place)])
        selection = Selection("?", 3, 9, (passage,))
        assert selection.by_document(()) == selection
        assert [(p.start, p.end, p.text, p.document) for p in selection.by_document(self.SPANS).passages] == expected


class TestCommand:
    def test_json_has_the_passages_and_their_places(self, run, document):
        code, out, err = run("select", document, QUESTION, "--tokens", "40", "--json", *FLAGS)
        assert (code, err) == (0, "")
        record = json.loads(out)
        assert [*record] == ["document", "question", "tokens", "passages", "skipped"]
        assert (record["document"], record["question"], record["tokens"]) == (str(document), QUESTION, 40)
        for passage in record["passages"]:
            assert WORDS[passage["start"] : passage["end"]] == passage["text"]

    def test_of_several_documents_each_passage_has_its_own_and_the_place_there(self, run, tmp_path):
        words = WORDS[:200]
        texts = {"a.txt": words, "b.txt": f"\n\n  {words}", "c.txt": words[::-1]}
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        files = [tmp_path / name for name in texts]
        code, out, _ = run("select", *files, "-q", QUESTION, "--tokens", "150", "--json", *FLAGS)
        assert code == 0
        passages = json.loads(out)["passages"]
        assert {passage["document"] for passage in passages} == set(texts)
        for passage in passages:
            assert texts[passage["document"]][passage["start"] : passage["end"]] == passage["text"]
        shown = run("select", *files, "-q", QUESTION, "--tokens", "150", "--quiet", *FLAGS)[1]
        first = passages[0]
        assert shown.startswith(f"{first['document']} [{first['start']}, {first['end']})\n{first['text']}\n")

    def test_text_has_each_passage_under_its_place(self, run, document):
        record = json.loads(run("select", document, QUESTION, "--tokens", "40", "--json", *FLAGS)[1])
        code, out, err = run("select", document, "-q", QUESTION, "--tokens", "40", *FLAGS)
        assert code == 0
        assert out == "\n".join(f"[{p['start']}, {p['end']})\n{p['text']}\n" for p in record["passages"])
        assert "40 of 300 tokens chosen" in " ".join(err.split())
        assert run("select", document, QUESTION, "--tokens", "40", "--quiet", *FLAGS) == (0, out, "")
        document.write_text("w1\tw2 [bold]w3[/bold]\n :smile:")
        assert "w1\tw2 [bold]w3[/bold]\n :smile:\n" in run("select", document, QUESTION, "--tokens", "40", *FLAGS)[1]

    def test_a_share_and_the_papers_preset(self, run, document):
        given = ["select", document, QUESTION, "--tokens", "60", "--json", *FLAGS]
        more = ["select", document, QUESTION, "--tokens", "80", "--json", *FLAGS, "--min-share", "1"]
        assert json.loads(run(*more)[1])["tokens"] < 80
        paper = ["--preset", "paper", "--score", "softmax", "--warmup-layers", "2"]
        assert json.loads(run(*given, *paper)[1])["tokens"] == 46  # all that a chunk of 64 holds beside the affixes
        assert run(*given, *paper, "--min-share", "0.5")[0] == 2

    def test_what_cannot_be_is_refused(self, run, document):
        for given, named in [
            (["--tokens", "some"], "--tokens is 'some'"),
            (["--tokens", "1k"], "tokens is 1024"),
            (["--target-len", "40"], "--target-len"),
        ]:
            code, _, err = run("select", document, QUESTION, *given, *FLAGS)
            assert code in (1, 2)
            assert named in " ".join(err.split())
