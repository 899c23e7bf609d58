"""The token channel of a worker process: messages, and for large tensors the carrier that joins it to the other worker.

Small tensors, those for which the carrier has no room, and all of them once it has failed travel in messages.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch

from minedraft.carriers import Carrier, ChannelCommand, ChannelEnd, ChannelStep
from minedraft.errors import ChannelFailed
from minedraft.messages import ITEM_BYTES, Tensor
from minedraft_workers.channels.base import TORCH_DTYPES, CarrierEnd, TensorSpec, check_tensor, dtype_name
from minedraft_workers.channels.inline import InlineChannel

logger = logging.getLogger("minedraft.worker")

OpenEnd = Callable[[Carrier, Iterator[int]], CarrierEnd]
"""Opens an end, whose leases take their generations from the iterator. Raises ChannelFailed."""


class JoinedChannel:
    """A `TokenChannel` with a carrier beside messages, which the scheduler chooses (`minedraft.carriers`).

    Attributes:
        num_sent, num_full: tensors sent by the carrier, and in a message because it had no room.
    """

    def __init__(self, open_end: OpenEnd) -> None:
        self.num_sent = 0
        self.num_full = 0
        self._open_end = open_end
        self._inline = InlineChannel()
        self._generations = itertools.count(1)
        self._lock = threading.Lock()  # held by whoever changes the three below; the device thread only reads them
        self._end: CarrierEnd | None = None
        self._sender: CarrierEnd | None = None  # the end, once both workers have joined
        self._least_bytes = 0
        self._num_resets = 0
        self._freed: deque[int] = deque()
        self._failures: deque[str] = deque(maxlen=1)

    def pack(self, tensor: torch.Tensor) -> Tensor:
        name, sender = dtype_name(tensor.dtype), self._sender
        if sender is None or not tensor.numel() or tensor.numel() * ITEM_BYTES[name] < self._least_bytes:
            return self._inline.pack(tensor)
        try:
            sender.free([self._freed.popleft() for _ in range(len(self._freed))])
            reference = sender.send(tensor.detach().contiguous().reshape(-1).view(torch.uint8))
        except ChannelFailed as error:
            self._fail(sender, error)
            return self._inline.pack(tensor)
        if reference is None:
            self.num_full += 1
            return self._inline.pack(tensor)
        self.num_sent += 1
        return Tensor(name, tuple(tensor.shape), reference=reference)

    def unpack(self, tensor: Tensor, spec: TensorSpec, device: torch.device) -> torch.Tensor:
        end, reference = self._end, tensor.reference
        if reference is None or end is None or reference.carrier is not end.end.carrier:
            return self._inline.unpack(tensor, spec, device)
        check_tensor(tensor, spec)
        try:
            data = end.receive(reference, math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype])
        except ChannelFailed as error:
            self._fail(end, error)
            raise
        return data.view(TORCH_DTYPES[tensor.dtype]).reshape(tensor.shape).to(device)

    def prepare(self, command: ChannelCommand) -> ChannelEnd | None:
        """Take a step to a carrier and return the own end after OPEN. Not in the device thread: it may wait for the
        other worker.

        Raises:
            ChannelFailed: it cannot be taken.
        """
        if command.step is ChannelStep.OPEN:
            return self._open(command.carrier)
        if command.carrier is Carrier.INLINE:
            with self._lock:
                self._sender = None  # the end stays: what is under way can still be received
            return None
        end = self._end
        if end is None or end.end.carrier is not command.carrier:
            raise ChannelFailed(f"cannot {command.step.value} {command.carrier.value}: it is not open")
        if command.step is ChannelStep.JOIN:
            assert command.peer is not None, "checked by the codec"
            end.join(command.peer)
            return None
        with self._lock:
            if self._end is end:
                self._least_bytes, self._sender = command.least_bytes, end
        logger.info("tensors of %d bytes or more travel by %s", command.least_bytes, command.carrier.value)
        return None

    def free(self, generations: Iterable[int]) -> None:
        """End leases of this worker before the next one is made."""
        self._freed.extend(generations)

    def reset(self) -> None:
        """Give the carrier up: the scheduler has left, or another one has come."""
        with self._lock:
            self._num_resets += 1
            end, self._end, self._sender = self._end, None, None
        self._freed.clear()
        self._failures.clear()
        if end is not None:
            end.close()

    def take_failure(self) -> str:
        """Return why the carrier has failed since the last call, "" if it has not."""
        try:
            return self._failures.pop()
        except IndexError:
            return ""

    def _open(self, carrier: Carrier) -> ChannelEnd:
        num_resets = self._num_resets
        end = self._open_end(carrier, self._generations)
        with self._lock:
            if is_late := self._num_resets != num_resets:
                last: CarrierEnd | None = end
            else:
                last, self._end, self._sender = self._end, end, None
        if last is not None:
            last.close()
        if is_late:
            raise ChannelFailed("a new epoch has begun")
        return end.end

    def _fail(self, end: CarrierEnd, error: ChannelFailed) -> None:
        """Send in messages from now on, and say why in the next reply, unless the end has been replaced."""
        logger.info("a tensor by %s is lost: %s", end.end.carrier.value, error)
        with self._lock:
            if self._end is end:
                self._sender = None
                self._failures.append(str(error))
