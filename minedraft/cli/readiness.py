"""Waits for a service that still loads its models, and tells the user so."""

from __future__ import annotations

import time
from collections.abc import Callable

from minedraft.cli.console import say
from minedraft.client import Client
from minedraft.errors import Unavailable

_LOOK_S = 0.2
_TELL_S = 10.0


def wait_until_loaded(
    client: Client,
    timeout_s: float | None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> float | None:
    """Return once the service has loaded its models; until then, tell every 10 s that it has not.

    A service that cannot load them ends, by --load-timeout-s at the latest, and then no longer answers.

    Args:
        timeout_s: the longest wait; None for as long as the service loads.
        clock: monotonic seconds. sleep: takes seconds.

    Returns:
        The seconds that are left of `timeout_s`; None for no limit.

    Raises:
        Unavailable: it still loads after `timeout_s`.
        MineDraftError: the service does not answer, or refuses the caller.
    """
    begin_s = tell_s = clock()
    while client.status().state == "starting":
        waited_s = clock() - begin_s
        if timeout_s is not None and waited_s >= timeout_s:
            raise Unavailable(f"the service still loads its models after {timeout_s:g} s (timeout_s)")
        if clock() >= tell_s:
            far = f", for {waited_s:.0f} s now" if waited_s >= 1 else ""
            say(f"waiting for the service at {client.address}, which loads its models{far}")
            tell_s += _TELL_S
        sleep(_LOOK_S)
    return None if timeout_s is None else max(timeout_s - (clock() - begin_s), 0.0)
