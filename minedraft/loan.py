"""The loan of the service that `AsyncClient.borrow` and `Client.borrow` return."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from minedraft.errors import Unavailable
from minedraft.rpc.codec.inference import borrow_to_pb
from minedraft.types import LoanTerms, Mode

_ENDED = "the service ended the loan"


class AsyncLoan:
    """Lets one client set mode and batch limits of the service; other clients are served meanwhile.

    Entering it begins the loan. When the loan ends, also by the death of this process, the service goes
    back to what was in force before; a block that ends without an error waits for that.

    Args:
        borrow: opens the stream. typed_errors: turns gRPC's errors into `minedraft.errors`.
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

    async def configure(
        self, mode: Mode | str, max_batch_size: int, draft_len: int, branches: int = 0, *, keep_cores: bool = False
    ) -> None:
        """Run with these settings. Return when they are in force; live requests are kept, and recent rates
        begin anew.

        Args:
            mode: "ar", "sd", "minedraft" or "pearl".
            max_batch_size: requests per batch (m).
            draft_len: tokens proposed per request and round (k).
            branches: prepared per request in mode pearl; 0: as many as the service was started with.
            keep_cores: in modes ar and sd, each worker computes on its own cores only.

        Raises:
            InvalidRequest: a value out of range. Unavailable: the loan has ended; the subclass says why.
        """
        terms = LoanTerms.check(mode, max_batch_size, draft_len, branches, keep_cores=keep_cores)
        message = borrow_to_pb(terms)
        with suppress(asyncio.InvalidStateError):  # the stream has ended; reading raises the reason
            async with self._typed_errors():
                await self._call.write(message)
        await self._read_reply()

    async def _read_reply(self) -> None:
        async with self._typed_errors():
            if not await self._call.read():
                raise Unavailable(_ENDED)


class Loan:
    """`AsyncLoan` without async.

    Args:
        borrow: opens the stream, given the messages to send. typed_errors: as in `AsyncLoan`.
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

    def configure(
        self, mode: Mode | str, max_batch_size: int, draft_len: int, branches: int = 0, *, keep_cores: bool = False
    ) -> None:
        """See `AsyncLoan.configure`."""
        terms = LoanTerms.check(mode, max_batch_size, draft_len, branches, keep_cores=keep_cores)
        self._requests.put(borrow_to_pb(terms))
        self._read_reply()

    def _read_reply(self) -> None:
        with self._typed_errors():
            if next(self._call, None) is None:
                raise Unavailable(_ENDED)

    def _cancel(self) -> None:
        self._requests.put(None)  # ends the iterator that gRPC's thread waits on
        self._call.cancel()
