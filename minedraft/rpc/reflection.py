"""Standard gRPC reflection: tools learn the client API from the service itself."""

from __future__ import annotations

import grpc.aio
from grpc_health.v1 import health_pb2

from minedraft.v1 import inference_pb2


def add_reflection(server: grpc.aio.Server) -> None:
    """Have this server describe the services that clients call, and itself."""
    from grpc_reflection.v1alpha import reflection  # only the processes that ask for it load it

    services = [
        inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name,
        health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
        reflection.SERVICE_NAME,
    ]
    reflection.enable_server_reflection(services, server)
