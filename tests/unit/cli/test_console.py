"""What commands show of a long job."""

from minedraft.cli.console import progress_printer
from minedraft.models.progress import Progress


def test_progress_lines_come_at_each_step_and_every_second(capsys):
    times = iter([0.0, 0.9, 1.1, 1.2, 1.3])
    on_progress = progress_printer(lambda: next(times))
    for progress in (
        Progress("downloading", 0, 5_000_000, "m"),
        Progress("downloading", 1_000_000, 5_000_000, "m"),
        Progress("downloading", 2_000_000, 5_000_000, "m"),
        Progress("checking", model="m"),
        Progress("checking", model="other"),
    ):
        on_progress(progress)
    lines = ["downloading   0% of 5 MB", "downloading  40% of 5 MB", "checking", "checking"]
    assert capsys.readouterr().err.splitlines() == lines
