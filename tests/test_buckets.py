"""A corpus in a bucket: indexed, asked and added to as one in a folder; a local server speaks S3's protocol."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from homerlm import Homer, HomerConfig, load_model
from homerlm.errors import ConfigError, DocumentError, InputError
from homerlm.index import buckets
from homerlm.index.index import Index
from homerlm.index.manifest import Manifest, ManifestWriter, load_collection
from homerlm.passes import run_steps
from homerlm.scale.corpus import indexing
from ray_nodes import PATHS
from test_shards import texts_of

pytest.importorskip("s3fs", reason="s3fs is not installed (extra `s3`)")
SIZES = ["--max-chunk-len", "64", "--shard-tokens", "300", "-m", "MODEL"]
ASKED = [
    "ask",
    "w1 w2",
    "-m",
    "MODEL",
    "--max-new-tokens",
    "4",
    "--target-len",
    "50",
    "--max-chunk-len",
    "64",
    "--json",
]


@pytest.fixture
def corpus(bucket, tmp_path):
    """The same documents in a bucket and in a folder."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in texts_of(count=8):
        (folder / f"{name}.txt").write_text(text * 4)
    lines = [{"name": f"line {n}", "text": f"w{n} w{n + 1} w{n + 2} " * 30} for n in range(4)]
    (folder / "some.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nno\n")
    for path in folder.iterdir():
        buckets.write_bytes(f"{bucket}/docs/{path.name}", path.read_bytes())
    buckets.write_bytes(f"{bucket}/docs/.hidden", b"w1")
    return folder


def fetched(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "fetched").glob("*/*"))


def same_files(here, there):
    """To the byte; names follow from the documents, and those that cannot be read are known by where they are."""
    mine, other = Manifest.read(here), Manifest.read(there)
    assert len(mine.files) == len(other.files) > 3
    assert mine.held == other.held
    for name, its in zip(mine.files, other.files, strict=True):
        content = [buckets.read_bytes(buckets.inside(*place)) for place in ((here, name), (there, its))]
        assert content[0] == content[1]


def test_a_corpus_is_indexed_into_a_bucket_and_asked_there(bucket, corpus, run, tmp_path):
    code, out, said = run("index", f"{bucket}/docs", "-o", f"{bucket}/all", *SIZES, "--json")
    assert code == 0, said
    record = json.loads(out)
    assert run("index", corpus, "-o", tmp_path / "here", *SIZES)[0] == 0
    same_files(f"{bucket}/all", tmp_path / "here")
    assert record["failed"][0].startswith("some.jsonl:5")
    assert record["bytes"] == sum(
        (tmp_path / "here" / name).stat().st_size for name in Manifest.read(tmp_path / "here").files
    )
    assert not fetched(tmp_path)
    answers = [json.loads(run(*ASKED, "--context", place)[1]) for place in (f"{bucket}/all", tmp_path / "here")]
    assert answers[0]["text"] == answers[1]["text"]
    assert answers[0]["tokens_kept"] == answers[1]["tokens_kept"]
    copies = fetched(tmp_path)
    assert copies == sorted(Manifest.read(f"{bucket}/all").files)
    assert run(*ASKED, "--context", f"{bucket}/all")[0] == 0
    assert fetched(tmp_path) == copies


def test_the_same_command_goes_on_and_adds_what_is_new(bucket, corpus, run, tmp_path):
    given = ("index", f"{bucket}/docs/*.txt", "-o", f"{bucket}/all", *SIZES, "--json")
    first = json.loads(run(*given)[1])
    assert first["tokens_read"] == first["tokens"]
    assert json.loads(run(*given)[1])["tokens_read"] == 0
    content = buckets.read_bytes(f"{bucket}/all/manifest.jsonl").splitlines(keepends=True)
    buckets.write_bytes(f"{bucket}/all/manifest.jsonl", b"".join(content[:-2]))  # a run that was killed
    again = json.loads(run(*given)[1])
    assert again["tokens"] == first["tokens"]
    assert Manifest.read(f"{bucket}/all").held == {
        digest: name for digest, name in Manifest.read(f"{bucket}/all").held.items() if name.endswith(".txt")
    }
    buckets.write_bytes(f"{bucket}/docs/new.txt", b"w7 w8 w9 " * 20)
    more = json.loads(run(*given)[1])
    assert 0 < more["tokens_read"] < more["tokens"]


def test_a_file_that_changed_is_fetched_again(bucket, corpus, words, model_folder, tmp_path):
    homer = Homer(*load_model(str(model_folder)), HomerConfig(max_chunk_len=64, target_len=50, pooling=3))
    for text, count in (("w1 w2 w3 ", 20), ("w4 ", 35)):
        homer.read(text * count).save(tmp_path / "one.homer")
        buckets.write_bytes(f"{bucket}/one.homer", (tmp_path / "one.homer").read_bytes())
        index = Index.load(f"{bucket}/one.homer", homer.model, homer.tokenizer)
        assert index.text_of(index.parts[0]).startswith(text)
        assert index.files[0].path == f"{bucket}/one.homer"
    assert fetched(tmp_path) == ["one.homer"] * 2


def test_a_fetch_that_breaks_off_leaves_nothing(bucket, tmp_path, monkeypatch):
    import s3fs

    buckets.write_bytes(f"{bucket}/one.homer", b"0" * 1000)

    async def cut(self, path, into, **_more):
        Path(into).write_bytes(b"0" * 10)
        raise OSError("connection reset")

    with monkeypatch.context() as patched:
        patched.setattr(s3fs.S3FileSystem, "_get_file", cut)
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(InputError, match="connection reset"):
            buckets.local(f"{bucket}/one.homer")
    assert not fetched(tmp_path)
    s3fs.S3FileSystem.clear_instance_cache()
    assert buckets.local(f"{bucket}/one.homer").read_bytes() == b"0" * 1000


def test_two_that_write_one_manifest_are_told(bucket, corpus, words, model_folder):
    homer = Homer(*load_model(str(model_folder)), HomerConfig(max_chunk_len=64, target_len=50, pooling=3))
    files = [(path.name, str(path)) for path in sorted(corpus.glob("*.txt"))]
    frame = homer.read_all([]).frame
    with ManifestWriter(f"{bucket}/all", frame) as first:
        run_steps(indexing(homer, files, f"{bucket}/all", shard_tokens=300))
        held = Manifest.read(f"{bucket}/all").held
        with pytest.raises(InputError, match="another homer index"):
            first.add(Manifest.read(f"{bucket}/all").shards[0])
    assert len(held) == 8
    assert Manifest.read(f"{bucket}/all").held == held
    assert len(load_collection(f"{bucket}/all", homer.model, homer.tokenizer).names) == 8


@pytest.mark.slow
def test_workers_read_and_write_in_the_bucket_by_themselves(bucket, corpus, model_folder, tmp_path):
    pytest.importorskip("ray")

    def homer(*given):
        command = [
            sys.executable,
            "-m",
            "homerlm",
            *(str(model_folder) if one == "MODEL" else str(one) for one in given),
        ]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": PATHS}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    on_ray = ["--workers", "ray", "--num-workers", "2"]
    homer("index", f"{bucket}/docs", "-o", f"{bucket}/ray", *SIZES, *on_ray, "--json")
    homer("index", corpus, "-o", tmp_path / "here", *SIZES, "--json")
    same_files(f"{bucket}/ray", tmp_path / "here")
    answers = [
        homer(*ASKED, "--context", place, *more) for place, more in ((f"{bucket}/ray", on_ray), (tmp_path / "here", []))
    ]
    assert answers[0]["text"] == answers[1]["text"]


def test_what_is_not_there_is_said_by_name(bucket, run, tmp_path, monkeypatch):
    code, out, _ = run(*ASKED, "--context", f"{bucket}/none")
    assert code
    assert json.loads(out)["error"]["message"].startswith(f"{bucket}/none does not exist")
    with pytest.raises(DocumentError, match="stands for no file"):
        buckets.expand([f"{bucket}/none/*.txt"])
    with pytest.raises(InputError, match="does not exist"):
        buckets.local(f"{bucket}/none.homer")
    with pytest.raises(ConfigError, match="nosuch"):
        buckets.local("nosuch://bucket/x")
    for given in ((f"{bucket}/docs", "-o", tmp_path / "x.homer"), (tmp_path, "-o", f"{bucket}/x.homer")):
        code, _, said = run("index", *given, "-m", "MODEL")
        assert code == 2
        assert "add --shard-tokens" in said
    monkeypatch.setattr(buckets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"homerlm\[s3\]"):
        buckets.local(f"{bucket}/x")
