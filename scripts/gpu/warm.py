"""`python -m scripts.gpu.warm SHAPE DTYPE DEVICE`: has the programs of a model compiled, by running one layer of it.

Triton compiles a program for every size of model when it is first launched, in a second or more, and keeps it in a
cache on the disk. One process for each size compiles beside the others, before anything is timed or has a limit of its
own.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from minedraft.device import Device
from minedraft_workers.device import pin
from minedraft_workers.execution.spans import ForwardSpan
from scripts.gpu.controlled.executor import make_executor
from scripts.gpu.controlled.shapes import SHAPES
from scripts.gpu.controlled.token_map import TokenMap

_VOCAB_SIZE = 512  # which no program depends on


def warm(shape: str, dtype: str, device: str) -> str:
    """Run a prompt and a token through a layer of the shape. Return what computed."""
    owned = Device.parse(device).here()
    pin(owned)
    cut = replace(SHAPES[shape], num_hidden_layers=1, vocab_size=_VOCAB_SIZE)
    successors = TokenMap.make(_VOCAB_SIZE, 1.0).target
    executor = make_executor(shape, cut, successors, owned, dtype=dtype, num_blocks=16)
    executor.forward([ForwardSpan(1, 0, range(20), 1)])
    executor.forward([ForwardSpan(1, 20, [5], 1)])
    return f"{executor.kernels}: {executor.kernels_reason}"


def main() -> None:
    start_s = time.monotonic()
    found = warm(*sys.argv[1:])
    sys.stdout.write(f"{' '.join(sys.argv[1:3])} on {found}, {time.monotonic() - start_s:.1f} s\n")


if __name__ == "__main__":
    main()
