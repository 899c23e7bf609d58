"""Every gRPC channel and server of this package is opened here, with the options of its kind."""

from __future__ import annotations

import os
from collections.abc import Sequence

import grpc
import grpc.aio

from minedraft.address import Address
from minedraft.errors import ConfigError

# Largest worker message: 256 requests x 8 drafts x 1024 truncated-q entries of 8 bytes.
MAX_WORKER_MESSAGE_BYTES = 16 << 20

_KEEPALIVE_TIME_MS = 2_000
_KEEPALIVE_TIMEOUT_MS = 3_000
_NEVER_MS = (1 << 31) - 1
# A worker lets go of a scheduler whose host has gone silent, so that another one can have it. One that is
# only stopped for a while (a debugger, a laptop's lid) must find its worker as it was.
_SERVER_KEEPALIVE_TIME_MS = 30_000
_SERVER_KEEPALIVE_TIMEOUT_MS = 60_000

EPOCH_KEY = "minedraft-epoch"
"""Metadata of a command stream: the epoch of the handshake that it follows."""

_MAX_REQUEST_BYTES = 2 << 20  # above the prompt cap, so that a prompt just over it gets our own message
_MAX_REPLY_BYTES = 8 << 20

Options = Sequence[tuple[str, int]]

_CHANNEL: Options = (
    # An address names the peer itself: a proxy of the environment is meant for the web.
    ("grpc.enable_http_proxy", 0),
    # Each channel has its own connection: one must not share another's death, nor its wait for a retry.
    ("grpc.use_local_subchannel_pool", 1),
    # A generation must not run twice behind the caller's back.
    ("grpc.enable_retries", 0),
    # A peer that starts or starts again is found at once; gRPC's own waits grow from one second to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)

_CLIENT_CHANNEL: Options = (*_CHANNEL, ("grpc.max_receive_message_length", _MAX_REPLY_BYTES))

# A silent peer is noticed within 5 s, calls or none.
_WORKER_CHANNEL: Options = (
    *_CHANNEL,
    ("grpc.max_receive_message_length", MAX_WORKER_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_WORKER_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    # No keepalive ping is sent while another kind of ping is unanswered; its own limit is a minute.
    ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),  # no limit
    # A connection that closes means that the worker is gone, so it must never close for idleness.
    ("grpc.client_idle_timeout_ms", _NEVER_MS),
)

_SERVER: Options = (
    ("grpc.so_reuseport", 0),
    # Peers may ping as often as they like, with calls or without; gRPC's own limit is once in five minutes.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),  # no limit
    ("grpc.keepalive_permit_without_calls", 1),
)

_CLIENT_SERVER: Options = (
    *_SERVER,
    ("grpc.max_receive_message_length", _MAX_REQUEST_BYTES),
    ("grpc.max_metadata_size", 16 << 10),
    # A client that vanished without a word (its host is gone, it is frozen) lets go within a minute.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),  # no limit
)

_WORKER_SERVER: Options = (
    *_SERVER,
    ("grpc.max_receive_message_length", MAX_WORKER_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_WORKER_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", _SERVER_KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", _SERVER_KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
)


def client_channel(address: Address) -> grpc.aio.Channel:
    """A client's connection to the service, or anybody's to a health service."""
    return grpc.aio.insecure_channel(address.uri, options=_CLIENT_CHANNEL)


def blocking_client_channel(address: Address) -> grpc.Channel:
    """The same without async."""
    return grpc.insecure_channel(address.uri, options=_CLIENT_CHANNEL)


def worker_channel(address: Address) -> grpc.aio.Channel:
    """The scheduler's connection to a worker."""
    return grpc.aio.insecure_channel(address.uri, options=_WORKER_CHANNEL)


def client_server() -> grpc.aio.Server:
    """The server that clients call."""
    return grpc.aio.server(options=_CLIENT_SERVER)


def worker_server() -> grpc.aio.Server:
    """A worker's server: accepts the scheduler's pings, and never shares its port."""
    return grpc.aio.server(options=_WORKER_SERVER)


def bind(server: grpc.aio.Server, address: Address) -> None:
    """Have a server listen at `address` once it is started; a unix socket is for this user only.

    Raises:
        ConfigError: it cannot listen there.
    """
    old_mask = os.umask(0o177)
    try:
        server.add_insecure_port(address.uri)
    except RuntimeError:
        limit = "cannot listen there (in use, or not an address of this host)"
        raise ConfigError("listen", str(address), limit) from None
    finally:
        os.umask(old_mask)
