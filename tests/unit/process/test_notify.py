import os
import socket

import pytest

from minedraft.process.notify import Notifier


@pytest.mark.parametrize("name", ["{tmp}/notify", "@minedraft-test-{pid}"])
def test_systemd_hears_every_state_on_paths_and_abstract_sockets(tmp_path, monkeypatch, name):
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
        notifier.stopping()
        messages = [receiver.recv(100).decode() for _ in range(4)]
    assert messages == ["STATUS=loading", "EXTEND_TIMEOUT_USEC=2500000", "READY=1", "STOPPING=1"]


def test_without_systemd_nothing_happens(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready()


def test_a_socket_that_is_gone_is_only_logged(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    Notifier().ready()
    assert "could not be notified" in caplog.text
