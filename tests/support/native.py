"""Whether this machine has the native kernels: a compiler, and a CPU that they were written for."""

from __future__ import annotations

import pytest

from minedraft.errors import ConfigError
from minedraft_workers.native.library import choose_isa, load_library


def why_missing() -> str:
    """Return why the native kernels cannot be had here; "" if they can."""
    try:
        choose_isa(load_library(), "auto")
    except ConfigError as error:
        return str(error)
    return ""


needs_native = pytest.mark.skipif(bool(why_missing()), reason=f"no native kernels here: {why_missing()}")
