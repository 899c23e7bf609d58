"""The settings of what operators see of a running service."""

from __future__ import annotations

from pydantic import Field

from minedraft.settings.choices import OptionalPath
from minedraft.settings.shared import SharedSettings


class ObservingSettings(SharedSettings):
    """The service's settings of what it shows to operators and their tools."""

    reflection: bool = Field(
        False, description="Describe the client API to tools such as grpcurl; only at an address of this host."
    )
    metrics: str | None = Field(
        None,
        description="Serve metrics for Prometheus at HOST:PORT, over plain HTTP: an address of this host.",
        examples=["HOST:PORT"],
    )
    trace: OptionalPath = Field(
        None,
        description="Write a trace of both workers to this file, for Perfetto and `minedraft timeline`. A full file, "
        "and that of an earlier run, is renamed to FILE.1.",
        examples=["FILE"],
    )
    otlp_traces_endpoint: str | None = Field(
        None,
        description="Send a span of each request to the OpenTelemetry collector at this URL, by OTLP over gRPC; needs "
        "minedraft[otel].",
        examples=["URL"],
    )
