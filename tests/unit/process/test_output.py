import io
import os
import threading

import pytest

from minedraft.process.output import LossyWriter


def fill(fd: int) -> None:
    os.set_blocking(fd, False)
    try:
        while True:
            os.write(fd, b"x" * 1000)
    except BlockingIOError:
        os.set_blocking(fd, True)


def writer_to(stream) -> LossyWriter:
    return LossyWriter(stream, lambda num_lines: f"{num_lines} lines were dropped")


@pytest.fixture
def pipe():
    read_fd, write_fd = os.pipe()
    with open(read_fd, "rb", buffering=0) as reader, open(write_fd, "w") as stream:
        yield reader, stream


def test_a_full_pipe_costs_lines_that_the_next_one_counts(pipe):
    reader, stream = pipe
    writer = writer_to(stream)
    assert writer.write_line("first")
    fill(stream.fileno())
    assert [writer.write_line(text) for text in ("lost", "lost too")] == [False, False]
    while len(data := reader.read(1 << 20)) == 1 << 16:
        pass
    assert writer.write_line("again")
    assert reader.read(100).endswith(b"2 lines were dropped\nagain\n")
    assert writer.num_dropped == 2
    assert data is not None


def test_a_line_longer_than_a_pipe_ends_with_the_pipe_and_the_next_one_begins_a_line(pipe):
    reader, stream = pipe
    writer = writer_to(stream)
    assert not writer.write_line("y" * 1_000_000)
    assert set(reader.read(1 << 20)) == {ord("y")}
    assert writer.write_line("after")
    assert reader.read(1 << 20) == b"\n1 lines were dropped\nafter\n"


def test_a_reader_that_has_gone_and_a_full_disk_cost_lines(pipe):
    reader, stream = pipe
    reader.close()
    assert not writer_to(stream).write_line("nobody")
    with open("/dev/full", "w") as full:
        assert not writer_to(full).write_line("nowhere")


def test_a_long_line_reaches_a_reader_that_reads(pipe):
    reader, stream = pipe
    text, got = "z" * 10_000, []
    thread = threading.Thread(target=lambda: [got.append(reader.read(4096)) for _ in range(3)])
    thread.start()
    assert writer_to(stream).write_line(text)
    thread.join()
    assert b"".join(got) == text.encode() + b"\n"


def test_a_stream_without_a_descriptor_is_written_to_as_it_is():
    stream = io.StringIO()
    assert writer_to(stream).write_line("plain \udcff")
    assert stream.getvalue() == "plain \udcff\n"
