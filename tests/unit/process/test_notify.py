import contextlib
import os
import socket
import threading

import pytest

from minedraft.process.notify import Notifier


@pytest.mark.parametrize("name", ["{tmp}/notify", "@minedraft-test-{pid}"])
def test_the_supervisor_hears_every_state_on_paths_and_abstract_sockets(tmp_path, monkeypatch, name):
    path = name.format(tmp=tmp_path, pid=os.getpid())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + path[1:] if path.startswith("@") else path)
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notifier = Notifier()
        assert "NOTIFY_SOCKET" not in os.environ
        notifier.status("loading")
        notifier.extend_timeout(2.5)
        notifier.ready()
        notifier.ping()
        notifier.stopping()
        messages = [receiver.recv(100).decode() for _ in range(5)]
    assert messages == [
        "STATUS=loading",
        "EXTEND_TIMEOUT_USEC=2500000",
        "READY=1",
        "WATCHDOG=1",
        "STOPPING=1\nSTATUS=stopping",
    ]


@pytest.mark.parametrize(
    ("usec", "pid", "watchdog_s"),
    [("5000000", None, 5.0), ("5000000", "{own}", 5.0), ("5000000", "1", None), ("0", None, None), ("x", None, None)],
)
def test_the_watchdog_is_taken_from_the_environment_once(monkeypatch, tmp_path, usec, pid, watchdog_s):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", pid.format(own=os.getpid()))
    assert Notifier().watchdog_s == watchdog_s
    assert not os.environ.keys() & {"WATCHDOG_USEC", "WATCHDOG_PID", "NOTIFY_SOCKET"}


def test_without_systemd_nothing_happens(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready()


def test_a_socket_that_is_gone_is_only_logged(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    Notifier().ready()
    assert "could not be notified" in caplog.text


def test_a_supervisor_that_reads_late_gets_the_news_and_not_every_ping(tmp_path, monkeypatch, caplog):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notifier = Notifier()
        num_pings = 2000  # more than the kernel keeps
        for _ in range(num_pings):
            notifier.ping()
        reader = threading.Timer(0.05, lambda: [receiver.recv(100) for _ in range(5)])
        reader.start()
        notifier.ready()
        reader.join()
        receiver.setblocking(False)
        heard = []
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(receiver.recv(100))
    assert heard[-1] == b"READY=1"
    assert len(heard) < num_pings
    assert not caplog.records
