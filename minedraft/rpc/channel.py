"""The gRPC channels and servers of this package, each kind with its options. No other module opens one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from minedraft.address import Address
from minedraft.errors import ConfigError
from minedraft.rpc.call_guard import CallGuard
from minedraft.security.tls import ClientTls, ServerPem, ServerTls
from minedraft.types import MAX_BATCH_SIZE, MAX_TOP_M

# The truncated q of a full batch with 8 drafts each, entries of 8 bytes, and room for everything else. What is larger
# is not sent: that command or reply is refused.
MAX_WORKER_MESSAGE_BYTES = MAX_BATCH_SIZE * 8 * MAX_TOP_M * 8 + (1 << 20)

_KEEPALIVE_TIME_MS = 2_000
_KEEPALIVE_TIMEOUT_MS = 3_000
_NEVER_MS = (1 << 31) - 1
# A worker drops a scheduler whose host is silent, so that another scheduler can use the worker. A scheduler
# that is only paused for a while (a debugger, a laptop's lid) keeps its worker.
_SERVER_KEEPALIVE_TIME_MS = 30_000
_SERVER_KEEPALIVE_TIMEOUT_MS = 60_000

EPOCH_KEY = "minedraft-epoch"
"""Metadata key of a command stream: the epoch of the handshake that the stream follows."""

MAX_REQUEST_BYTES = 1 << 20
"""Of a client's message; above the prompt limit, so that a prompt just over it gets our own refusal."""
MAX_REPLY_BYTES = 256 << 10
"""Of a message to a client: MAX_MESSAGE_TOKENS with log-probabilities, or MAX_MESSAGE_CHARS, with room."""

Options = Sequence[tuple[str, int]]

_CHANNEL: Options = (
    # The address is the peer's own; proxies set in the environment are meant for the web.
    ("grpc.enable_http_proxy", 0),
    # One connection per channel, so that one link's failure or retry delay cannot affect another's.
    ("grpc.use_local_subchannel_pool", 1),
    # A transparent retry would run a generation twice.
    ("grpc.enable_retries", 0),
    # Reconnect to a restarted peer quickly; gRPC's default delays grow from one second to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)

_CLIENT_CHANNEL: Options = (*_CHANNEL, ("grpc.max_receive_message_length", MAX_REPLY_BYTES))

# A silent peer is detected within 5 s, with or without calls.
_WORKER_CHANNEL: Options = (
    *_CHANNEL,
    ("grpc.max_receive_message_length", MAX_WORKER_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_WORKER_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    # While a ping of another kind is unanswered, no keepalive ping is sent; the default limit for it is a minute.
    ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),  # no limit
    # A closed connection means a lost worker, so an idle one must not be closed.
    ("grpc.client_idle_timeout_ms", _NEVER_MS),
)

_SERVER: Options = (
    ("grpc.so_reuseport", 0),
    # Who connects and says nothing is dropped soon; gRPC's default is two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Allow frequent pings, with or without calls; gRPC's default limit is one in five minutes.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),  # no limit
    ("grpc.keepalive_permit_without_calls", 1),
)

_CLIENT_SERVER: Options = (
    *_SERVER,
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", MAX_REPLY_BYTES),
    ("grpc.max_metadata_size", 16 << 10),
    # The requests of a client that vanished (its host is down, or it is frozen) end within a minute.
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


def client_channel(address: Address, tls: ClientTls | None = None) -> grpc.aio.Channel:
    """Return a client's channel to the service, or any process's channel to a health service."""
    if tls is None:
        return grpc.aio.insecure_channel(address.uri, options=_CLIENT_CHANNEL)
    return grpc.aio.secure_channel(address.uri, _caller_credentials(tls), options=_CLIENT_CHANNEL)


def blocking_client_channel(address: Address, tls: ClientTls | None = None) -> grpc.Channel:
    """Return a client's channel to the service, without async."""
    if tls is None:
        return grpc.insecure_channel(address.uri, options=_CLIENT_CHANNEL)
    return grpc.secure_channel(address.uri, _caller_credentials(tls), options=_CLIENT_CHANNEL)


def worker_channel(address: Address, tls: ClientTls | None = None) -> grpc.aio.Channel:
    """Return the scheduler's channel to a worker."""
    if tls is None:
        return grpc.aio.insecure_channel(address.uri, options=_WORKER_CHANNEL)
    return grpc.aio.secure_channel(address.uri, _caller_credentials(tls), options=_WORKER_CHANNEL)


def client_server(check: grpc.aio.ServerInterceptor[Any, Any] | None = None) -> grpc.aio.Server:
    """Return the server that clients call; `check` looks at every call of every method first."""
    return grpc.aio.server(options=_CLIENT_SERVER, interceptors=[*([] if check is None else [check]), CallGuard()])


def worker_server() -> grpc.aio.Server:
    """Return a worker's server, which accepts the scheduler's pings and never shares its port."""
    return grpc.aio.server(options=_WORKER_SERVER)


def bind(server: grpc.aio.Server, address: Address, tls: ServerTls | None = None) -> None:
    """Have a server listen at `address` once it is started; a unix socket is accessible to this user only, and has no
    TLS.

    Raises:
        ConfigError: the server cannot listen there, or other hosts would reach it without TLS.
    """
    if tls is None and not address.is_local:
        raise ConfigError("listen", str(address), "reachable from other hosts, which requires TLS")
    old_mask = os.umask(0o177)
    try:
        if tls is None or address.path is not None:
            server.add_insecure_port(address.uri)
        else:
            server.add_secure_port(address.uri, _server_credentials(tls))
    except RuntimeError:
        limit = "cannot listen there (in use, or not an address of this host)"
        raise ConfigError("listen", str(address), limit) from None
    finally:
        os.umask(old_mask)


def _caller_credentials(tls: ClientTls) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(tls.roots, tls.key, tls.certificate)


def _server_credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Return credentials that read changed files at the next connection; live ones keep what they began with."""

    def renew() -> Any:  # noqa: ANN401 - its stub lacks None, which keeps what is in use
        pem = tls.renew()
        return None if pem is None else _certificates(pem)

    must_prove = tls.pem.client_ca is not None
    return grpc.dynamic_ssl_server_credentials(
        _certificates(tls.pem),
        renew,
        require_client_authentication=must_prove,
    )


def _certificates(pem: ServerPem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.certificate)], pem.client_ca)
