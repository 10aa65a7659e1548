"""Check once, in seconds, whether the hub can be reached; if a network drops packets, the hub clients retry for minutes."""

from __future__ import annotations

import functools
import sys

# Time limit for the hub's first answer.
_TIMEOUT_S = 10.0


@functools.cache
def reach_hub() -> None:
    """Call this before any request by hub name.

    If the hub does not answer, its clients go offline, as with HF_HUB_OFFLINE=1: they use their cache, and anything else fails
    at once.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_S)
    except Exception as error:  # noqa: BLE001  the exception depends on the client's HTTP library
        what = f"the hub ({constants.ENDPOINT}) does not answer ({type(error).__name__})"
        print(f"realrl: {what}; only files in the local cache can be used", file=sys.stderr)
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
