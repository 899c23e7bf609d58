import os
import socket

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
    assert messages == ["STATUS=loading", "EXTEND_TIMEOUT_USEC=2500000", "READY=1", "WATCHDOG=1", "STOPPING=1"]


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
