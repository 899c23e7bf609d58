"""The service, borrowed: what `AsyncClient.borrow` and `Client.borrow` give."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from minedraft.errors import Unavailable
from minedraft.rpc.codec_inference import borrow_to_pb
from minedraft.types import LoanTerms, Mode

_ENDED = "the service has ended the loan"


class AsyncLoan:
    """Mode and batch limits of the service for one client alone; others are served meanwhile.

    Entering it begins the loan. At its end, also when this process dies, the service goes back to the
    settings it was started with; a block that ends well waits for that.

    Args:
        borrow: opens the stream. typed_errors: makes gRPC's errors ours.
    """

    def __init__(
        self, borrow: Callable[[], Any], typed_errors: Callable[[], AbstractAsyncContextManager[None]]
    ) -> None:
        self._call: Any = None
        self._borrow = borrow
        self._typed_errors = typed_errors

    async def __aenter__(self) -> Self:
        self._call = self._borrow()
        try:
            await self._read_reply()
        except BaseException:
            self._call.cancel()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                async with self._typed_errors():
                    await self._call.done_writing()
                    await self._call.read()  # the end
        finally:
            self._call.cancel()

    async def configure(self, mode: Mode | str, max_batch_size: int, draft_len: int) -> None:
        """Run with these settings and fresh counters. Returns when they hold, so when those requests have
        ended that were decoding before; requests that wait are kept.

        Args:
            mode: "ar", "sd" or "minedraft".
            max_batch_size: requests in each batch (m).
            draft_len: tokens proposed per request and round (k).

        Raises:
            InvalidRequest: a value out of range. Unavailable: the loan has ended; the subclass says why.
        """
        message = borrow_to_pb(LoanTerms.check(mode, max_batch_size, draft_len))
        with suppress(asyncio.InvalidStateError):  # the stream has ended: reading says why
            async with self._typed_errors():
                await self._call.write(message)
        await self._read_reply()

    async def _read_reply(self) -> None:
        async with self._typed_errors():
            if not await self._call.read():
                raise Unavailable(_ENDED)


class Loan:
    """The same, blocking.

    Args:
        borrow: opens the stream, given what to send. typed_errors: makes gRPC's errors ours.
    """

    def __init__(
        self,
        borrow: Callable[[Iterator[object]], Any],
        typed_errors: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._call: Any = None
        self._borrow = borrow
        self._typed_errors = typed_errors
        self._requests: SimpleQueue[object] = SimpleQueue()

    def __enter__(self) -> Self:
        self._call = self._borrow(iter(self._requests.get, None))
        try:
            self._read_reply()
        except BaseException:
            self._cancel()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._requests.put(None)
                with self._typed_errors():
                    next(self._call, None)  # the end
        finally:
            self._cancel()

    def configure(self, mode: Mode | str, max_batch_size: int, draft_len: int) -> None:
        """See `AsyncLoan.configure`."""
        self._requests.put(borrow_to_pb(LoanTerms.check(mode, max_batch_size, draft_len)))
        self._read_reply()

    def _read_reply(self) -> None:
        with self._typed_errors():
            if next(self._call, None) is None:
                raise Unavailable(_ENDED)

    def _cancel(self) -> None:
        self._requests.put(None)  # gRPC's thread waits for it
        self._call.cancel()
