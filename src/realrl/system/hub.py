"""Whether the hub can be reached, found out once, in seconds: where a network swallows packets, its clients try for minutes."""

from __future__ import annotations

import functools
import sys

# Seconds for the hub's first answer.
_PATIENCE_S = 10.0


@functools.cache
def reach_hub() -> None:
    """To be called before anything is asked for by its hub name.

    Where the hub does not answer, its clients are told that they are offline, as HF_HUB_OFFLINE=1 does: what they have stored
    is used, and what they have not fails at once.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE_S)
    except Exception as error:  # noqa: BLE001  the kinds are those of whichever HTTP library the client uses
        what = f"the hub ({constants.ENDPOINT}) does not answer ({type(error).__name__})"
        print(f"realrl: {what}; only what was stored before can be had", file=sys.stderr)
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
