"""A span for each request, for OpenTelemetry, under its semantic conventions for generative AI.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
A span is made from what the client gets: nothing is measured twice, and the rounds know nothing of it. It has no text
of a prompt or an answer. The packages (extra `otel`) are loaded when spans are asked for, and not before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

from minedraft.errors import ConfigError, MineDraftError
from minedraft.output import Output, RequestUsage
from minedraft.prompts import ChatPrompt, GenerateCall

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

_EXPORT_TIMEOUT_S = 5
_FLUSH_MS = 3000


class RequestSpans:
    """Makes the spans of one service.

    Args:
        processor: takes the ended spans.
        model_name: of the target.
        clock_ns: nanoseconds since the epoch.
    """

    def __init__(self, processor: SpanProcessor, model_name: str, clock_ns: Callable[[], int] = time.time_ns) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._model_name = model_name
        self._clock_ns = clock_ns
        self._provider = TracerProvider(resource=Resource.create({"service.name": "minedraft"}), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("minedraft")
        self._propagator = TraceContextTextMapPropagator()

    async def traced(self, outputs: AsyncGenerator[Output, None], call: GenerateCall) -> AsyncGenerator[Output, None]:
        """Pass a call's output on, and make its span."""
        usages: dict[int, RequestUsage] = {}
        reasons: list[str] = []
        with self._span(call) as span:
            async with aclosing(outputs):
                async for output in outputs:
                    if output.usage is not None and output.finish_reason is not None:
                        usages[output.index] = output.usage
                        reasons.append(output.finish_reason.value)
                    yield output
            span.set_attribute("gen_ai.response.finish_reasons", reasons)
            self._add_usage(span, list(usages.values()))

    def close(self) -> None:
        """Send what has not been sent; takes seconds at most."""
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()

    @contextmanager
    def _span(self, call: GenerateCall) -> Iterator[Span]:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        operation = "chat" if isinstance(call.prompt, ChatPrompt) else "text_completion"
        span = self._tracer.start_span(
            f"{operation} {self._model_name}",
            context=self._propagator.extract(dict(call.trace_headers)),
            kind=SpanKind.SERVER,
            attributes=self._attributes(call, operation),
            start_time=self._clock_ns(),
        )
        try:
            yield span
        except (asyncio.CancelledError, GeneratorExit):  # its client has gone
            span.set_attribute("error.type", "CANCELLED")
            raise
        except Exception as error:
            reason = error.reason if isinstance(error, MineDraftError) else type(error).__name__
            span.set_attribute("error.type", reason)
            span.set_status(Status(StatusCode.ERROR, reason))  # not its words, which may quote the prompt
            raise
        finally:
            span.end(self._clock_ns())

    def _attributes(self, call: GenerateCall, operation: str) -> dict[str, Any]:
        sampling = call.sampling
        values: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "minedraft",
            "gen_ai.request.model": self._model_name,
            "gen_ai.response.model": self._model_name,
            "gen_ai.response.id": call.request_id,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.top_k": sampling.top_k,
            "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
            "gen_ai.request.presence_penalty": sampling.presence_penalty,
            "gen_ai.request.choice.count": sampling.n,
            "gen_ai.request.max_tokens": sampling.max_new_tokens,
            "gen_ai.request.seed": sampling.seed,
        }
        return {name: value for name, value in values.items() if value is not None}

    def _add_usage(self, span: Span, usages: list[RequestUsage]) -> None:
        """Add what the samples took, and of the first one when its parts began."""
        if not usages:
            return
        first = usages[0]
        span.set_attributes(
            {
                "gen_ai.usage.input_tokens": first.prompt_tokens,
                "gen_ai.usage.output_tokens": sum(usage.output_tokens for usage in usages),
                "gen_ai.response.time_to_first_chunk": first.first_token_s,
                "minedraft.rounds": sum(usage.rounds for usage in usages),
                "minedraft.drafted_tokens": sum(usage.drafted_tokens for usage in usages),
                "minedraft.accepted_tokens": sum(usage.accepted_tokens for usage in usages),
            }
        )
        arrived_ns = self._clock_ns() - round(max(usage.total_s for usage in usages) * 1e9)
        for name, since_s in (("queue", 0.0), ("prefill", first.queue_s), ("decode", first.first_token_s)):
            span.add_event(name, timestamp=arrived_ns + round(since_s * 1e9))


def spans_to(endpoint: str, model_name: str) -> RequestSpans:
    """Return spans that go to a collector, by OTLP over gRPC, in batches from a thread of their own.

    Raises:
        ConfigError: the packages are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        limit = f"needs OpenTelemetry: pip install 'minedraft[otel]' ({error.name} is missing)"
        raise ConfigError("otlp_traces_endpoint", endpoint, limit) from None
    return RequestSpans(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=_EXPORT_TIMEOUT_S)), model_name)
