"""The span of a request, in the SDK's own memory, and that nothing is loaded for it unless it is asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode

from minedraft.errors import NumericError
from minedraft.observe.spans import RequestSpans
from minedraft.output import Output, RequestUsage
from minedraft.prompts import ChatPrompt, GenerateCall, TextPrompt
from minedraft.sampling_params import SamplingParams
from minedraft.types import FinishReason

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALL = GenerateCall(
    TextPrompt("the cat sleeps"),
    SamplingParams(temperature=0.5, seed=7, max_new_tokens=9, n=2),
    "job-1",
    trace_headers=(("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"), ("tracestate", "a=b")),
)
OUTPUTS = [
    Output("the"),
    Output(" cat", finish_reason=FinishReason.STOP, usage=RequestUsage(4, 6, 3, 5, 3, 0.5, 1.0, 3.0), index=0),
    Output(" dog", finish_reason=FinishReason.LENGTH, usage=RequestUsage(4, 9, 4, 5, 2, 0.5, 1.5, 2.0), index=1),
]
NOW_NS = 10_000_000_000


async def stream(*outputs: Output, error: Exception | None = None) -> AsyncGenerator[Output, None]:
    for output in outputs:
        yield output
    if error is not None:
        raise error


class Exported:
    """Spans that a service would make at the tenth second of the epoch."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.spans = RequestSpans(SimpleSpanProcessor(self._exporter), "big", lambda: NOW_NS)

    @property
    def only(self):
        (span,) = self._exporter.get_finished_spans()
        return span


async def test_a_span_has_the_parts_of_its_request_under_the_gen_ai_conventions() -> None:
    exported = Exported()
    seen = [output async for output in exported.spans.traced(stream(*OUTPUTS), CALL)]
    assert seen == OUTPUTS
    span = exported.only
    assert (span.name, span.kind) == ("text_completion big", SpanKind.SERVER)
    assert format(span.context.trace_id, "032x") == TRACE_ID
    assert format(span.parent.span_id, "016x") == PARENT_ID
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "minedraft",
        "gen_ai.request.model": "big",
        "gen_ai.response.model": "big",
        "gen_ai.response.id": "job-1",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.top_k": 0,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.seed": 7,
        "gen_ai.response.finish_reasons": ("stop", "length"),
        "gen_ai.usage.input_tokens": 4,
        "gen_ai.usage.output_tokens": 15,
        "gen_ai.response.time_to_first_chunk": 1.0,
        "minedraft.rounds": 7,
        "minedraft.drafted_tokens": 10,
        "minedraft.accepted_tokens": 5,
    }
    events = [(event.name, event.timestamp / 1e9) for event in span.events]
    assert events == [("queue", 7.0), ("prefill", 7.5), ("decode", 8.0)]
    known = {getattr(gen_ai_attributes, name) for name in dir(gen_ai_attributes) if name.startswith("GEN_AI")}
    assert {name for name in span.attributes if name.startswith("gen_ai.")} <= known
    assert "cat" not in span.to_json(), "no text of a prompt or an answer"


async def test_a_failed_request_is_an_error_and_its_words_are_not_sent() -> None:
    exported = Exported()
    with pytest.raises(NumericError):
        async for _ in exported.spans.traced(stream(error=NumericError("the cat sleeps")), CALL):
            pass
    span = exported.only
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "NUMERIC"
    assert "cat" not in span.to_json()


async def test_a_call_that_its_client_leaves_ends_its_span() -> None:
    exported = Exported()
    call = GenerateCall(ChatPrompt(({"role": "user", "content": "hi"},)), SamplingParams(), "job-2")
    async with aclosing(exported.spans.traced(stream(*OUTPUTS), call)) as outputs:
        await anext(outputs)
    span = exported.only
    assert (span.name, span.parent) == ("chat big", None)
    assert span.attributes["error.type"] == "CANCELLED"
    assert span.status.status_code is StatusCode.UNSET


def test_without_the_setting_nothing_of_opentelemetry_is_loaded() -> None:
    code = (
        "import sys, minedraft.server.composition, minedraft.cli.launch; "
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'prometheus', 'grpc_reflection.'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
