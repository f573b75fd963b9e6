"""Whether the Hugging Face hub can be reached."""

from __future__ import annotations

import errno
import socket
import time
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_url

from homerlm.errors import causes

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


def _is_unconnected(error: BaseException) -> bool:
    """Whether an error came from a name that is not found or an address that nobody answers at."""
    return any(
        isinstance(one, socket.gaierror) or (isinstance(one, OSError) and one.errno in _UNREACHABLE)
        for one in causes(error)
    )
