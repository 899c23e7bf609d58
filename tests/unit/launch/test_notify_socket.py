import os
import socket
import subprocess
import sys

from minedraft.launch.notify_socket import NotifySocket

SEND = "import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', sys.argv[1])"


def test_only_the_process_itself_is_heard_and_nothing_is_left(tmp_path):
    receiver = NotifySocket(tmp_path / "n")
    try:
        subprocess.run([sys.executable, "-S", "-c", SEND, str(tmp_path / "n")], check=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"STATUS=\xffhere", str(tmp_path / "n"))
        assert list(receiver.receive(os.getpid())) == ["STATUS=\ufffdhere"]
        assert list(receiver.receive(os.getpid())) == []
    finally:
        receiver.close()
    assert not list(tmp_path.iterdir())
