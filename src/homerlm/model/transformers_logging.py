"""Keeping transformers quiet while it loads: our callers show their own progress."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars, advice or warnings of transformers inside; its settings are put back afterwards."""
    bars, hub_bars = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    verbosity = logging.get_verbosity()
    gguf: Any = modeling_gguf_pytorch_utils
    gguf_bar = getattr(gguf, "tqdm", None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*progress bars")  # the hub's, if a variable of its own decides
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        gguf.tqdm = logging.tqdm  # reading a GGUF file draws a bar of its own, which cannot be switched off
        try:
            yield
        finally:
            gguf.tqdm = gguf_bar
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
            (enable_progress_bars if hub_bars else disable_progress_bars)()
