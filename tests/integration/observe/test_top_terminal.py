"""`minedraft top` in a terminal of its own, before a service with fake workers."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.fakes.service import fake_service

pytestmark = pytest.mark.slow

COMMAND = (sys.executable, "-m", "minedraft.cli.main", "top", "--interval-s", "0.1", "--server")


async def left_after(address: str, leave: str) -> tuple[int, str]:
    """Run it in a terminal of 80 columns until it has drawn a frame, then leave. Return exit code and output."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = os.environ | {"TERM": "xterm"}
    process = await asyncio.create_subprocess_exec(
        *COMMAND, address, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    shown, loop = b"", asyncio.get_running_loop()
    try:
        async with asyncio.timeout(60):
            while b"overlap" not in shown:
                shown += await loop.run_in_executor(None, os.read, ours, 4096)
            if leave == "q":
                os.write(ours, b"q")
            else:
                process.send_signal(signal.SIGINT)
            while True:
                try:
                    more = await loop.run_in_executor(None, os.read, ours, 4096)
                except OSError:  # its terminal is closed
                    break
                if not more:
                    break
                shown += more
            return await process.wait(), shown.decode(errors="replace")
    finally:
        os.close(ours)
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("leave", ["q", "Ctrl-C"])
async def test_q_and_ctrl_c_leave_the_terminal_as_it_was(tmp_path: Path, leave: str) -> None:
    async with fake_service(tmp_path) as service:
        code, shown = await left_after(service.address, leave)
    assert code == 0
    assert "verifier" in shown
    assert shown.rstrip().endswith("\x1b[?1049l\x1b[?25h") or "\x1b[?1049l" in shown.rsplit("overlap", 1)[1]


async def test_where_the_output_is_no_terminal_it_prints_one_frame(tmp_path: Path) -> None:
    async with fake_service(tmp_path) as service:
        process = await asyncio.create_subprocess_exec(*COMMAND, service.address, stdout=subprocess.PIPE)
        out, _ = await process.communicate()
    assert process.returncode == 0
    lines = out.decode().splitlines()
    assert lines[0].startswith("MineDraft serving")
    assert "\x1b" not in out.decode()
