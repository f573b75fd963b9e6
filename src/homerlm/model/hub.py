"""Whether the Hugging Face hub can be reached."""

from __future__ import annotations

import errno
import socket
import time
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_url

PAUSE = 1.0  # seconds before it is tried again
_UNREACHABLE = {errno.ECONNREFUSED, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH}


def is_out_of_reach(name: str, token: Any = None) -> bool:
    """Whether no connection to the hub can be made, asked twice for a repository's config. The hub's client waits half
    a minute for each file; a hub that is slow, or refuses, is within reach."""
    if _connects(name, token):
        return False
    time.sleep(PAUSE)
    return not _connects(name, token)


def _connects(name: str, token: Any) -> bool:
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), token=token)
    except Exception as error:  # of several libraries, by versions
        return not _is_unconnected(error)
    return True


def _is_unconnected(error: BaseException | None) -> bool:
    """Whether the chain of an error ends in a name that is not found or an address that nobody answers at."""
    while error is not None:
        if isinstance(error, socket.gaierror) or (isinstance(error, OSError) and error.errno in _UNREACHABLE):
            return True
        error = error.__cause__ or error.__context__
    return False
