"""Spans on their way to a collector, with a service on fake workers: the trace that a client is part of goes on."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from minedraft.errors import ConfigErrors
from minedraft.settings import checks
from minedraft.settings.loading import load_settings
from minedraft.v1 import inference_pb2, inference_pb2_grpc
from tests.fakes.service import fake_service

trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
trace_grpc = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc")

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


class Collector(trace_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: list[Any] = []

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service.ExportTraceServiceResponse()


async def test_a_collector_gets_a_span_of_each_request_when_the_service_ends_at_the_latest(tmp_path: Path) -> None:
    collector, server = Collector(), grpc.server(ThreadPoolExecutor(2))
    trace_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        async with (
            asyncio.timeout(60),
            fake_service(tmp_path, otlp_traces_endpoint=f"http://127.0.0.1:{port}") as service,
            grpc.aio.insecure_channel(service.address) as channel,
        ):
            request = inference_pb2.GenerateRequest(request_id="job-1")
            request.token_ids.ids.extend([1, 2, 3])
            request.sampling.max_new_tokens = 5
            metadata = (("traceparent", f"00-{TRACE_ID}-b7ad6b7169203331-01"),)
            call = inference_pb2_grpc.InferenceStub(channel).Generate(request, metadata=metadata)
            assert [reply async for reply in call][-1].usage.output_tokens == 5
    finally:
        await asyncio.to_thread(server.stop(0).wait)
    (span,) = collector.spans
    assert span.trace_id.hex() == TRACE_ID
    values = {attribute.key: attribute.value for attribute in span.attributes}
    assert values["gen_ai.response.id"].string_value == "job-1"
    assert values["gen_ai.usage.output_tokens"].int_value == 5
    assert [event.name for event in span.events] == ["queue", "prefill", "decode"]


@pytest.mark.parametrize(
    ("url", "limit"), [("localhost:4317", "must be http://"), ("http://10.0.0.1:4317", "without encryption")]
)
def test_a_collector_on_another_host_needs_encryption(url: str, limit: str) -> None:
    with pytest.raises(ConfigErrors, match=limit):
        load_settings({"otlp_traces_endpoint": url})
    for fine in ("http://localhost:4317", "http://127.0.0.1:4317/", "https://collector.example:4317"):
        load_settings({"otlp_traces_endpoint": fine})


def test_spans_that_cannot_be_sent_are_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_EXPORTER", "no_such_package.trace_exporter")
    with pytest.raises(ConfigErrors, match=r"otlp_traces_endpoint is .*: needs OpenTelemetry: pip"):
        load_settings({"otlp_traces_endpoint": "http://localhost:4317"})
