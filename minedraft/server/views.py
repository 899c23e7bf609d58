"""What the settings ask the service to show to operators beside its status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from minedraft.address import Address
from minedraft.core.events import Observer
from minedraft.observe.spans import spans_to
from minedraft.observe.trace import Tracer
from minedraft.output import ServiceStatus
from minedraft.server.service import InferenceService
from minedraft.settings.door import host_check
from minedraft.settings.service import Settings


class Views:
    """The views of one service.

    Attributes:
        observers: take the events of its pipeline.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.observers: list[Observer] = []

    @asynccontextmanager
    async def shown(self, service: InferenceService) -> AsyncIterator[None]:
        """Show them while the block runs.

        Raises:
            ConfigError: one of them cannot be shown.
        """
        async with AsyncExitStack() as stack:
            if self._settings.metrics is not None:
                await self._show_metrics(Address.parse(self._settings.metrics, "metrics"), service.status, stack)
            if self._settings.trace is not None:
                self._write_trace(self._settings.trace, stack)
            if self._settings.otlp_traces_endpoint is not None:
                service.spans = spans_to(self._settings.otlp_traces_endpoint, self._model_name)
                stack.push_async_callback(asyncio.to_thread, service.spans.close)
            yield

    @property
    def _model_name(self) -> str:
        return self._settings.target.name if self._settings.target is not None else ""

    def _write_trace(self, path: Path, stack: AsyncExitStack) -> None:
        tracer = Tracer(path, f"MineDraft, {self._model_name}")
        self.observers.append(tracer.observe)
        stack.push_async_callback(asyncio.to_thread, tracer.close)

    async def _show_metrics(self, address: Address, status: Callable[[], ServiceStatus], stack: AsyncExitStack) -> None:
        # Loaded only when asked for.
        from minedraft.observe.exposition import Page
        from minedraft.observe.metrics import Meter
        from minedraft.observe.metrics_server import serve_metrics

        meter = Meter()
        self.observers.append(meter.observe)
        page = Page(self._model_name)
        is_meant = host_check(address, self._settings.http_hosts)
        await stack.enter_async_context(serve_metrics(address, status, lambda now: page.metrics(now, meter), is_meant))
