"""gRPC options of the links between scheduler and workers, and of the servers at their ends."""

from __future__ import annotations

# Largest worker message: 256 requests x 8 drafts x 1024 truncated-q entries of 8 bytes.
MAX_WORKER_MESSAGE_BYTES = 16 << 20

KEEPALIVE_TIME_MS = 2_000
KEEPALIVE_TIMEOUT_MS = 3_000
_NEVER_MS = (1 << 31) - 1
# A worker lets go of a scheduler whose host has gone silent, so that another one can have it. One that is
# only stopped for a while (a debugger, a laptop's lid) must find its worker as it was.
_SERVER_KEEPALIVE_TIME_MS = 30_000
_SERVER_KEEPALIVE_TIMEOUT_MS = 60_000

EPOCH_KEY = "minedraft-epoch"
"""Metadata of a command stream: the epoch of the handshake that it follows."""

Options = list[tuple[str, int]]


def worker_channel_options() -> Options:
    """For the scheduler's channel to a worker: a silent peer is noticed within 5 s, calls or none."""
    return [
        ("grpc.max_receive_message_length", MAX_WORKER_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_WORKER_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        # No keepalive ping is sent while another kind of ping is unanswered; its own limit is a minute.
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),  # no limit
        # A connection that closes means that the worker is gone, so it must never close for idleness.
        ("grpc.client_idle_timeout_ms", _NEVER_MS),
        # Each link has its own connection: one handshake must not share another's death.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        # While a worker loads, its socket is not there yet; look again soon.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.enable_retries", 0),
    ]


def worker_server_options() -> Options:
    """For a worker's server: accepts the pings above, and never shares its port."""
    return [
        ("grpc.max_receive_message_length", MAX_WORKER_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_WORKER_MESSAGE_BYTES),
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", _SERVER_KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _SERVER_KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
        ("grpc.http2.max_ping_strikes", 0),  # no limit
        ("grpc.keepalive_permit_without_calls", 1),
    ]
