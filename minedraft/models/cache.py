"""The cache folder for fetched models: one writer at a time, only complete, checked folders."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from minedraft.errors import ConfigError
from minedraft.models.files import file_sha256

CACHE_MANIFEST = "minedraft_manifest.json"
CACHE_VARIABLE = "MINEDRAFT_CACHE"


def cache_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Return $MINEDRAFT_CACHE, $XDG_CACHE_HOME/minedraft or ~/.cache/minedraft; it need not exist."""
    if chosen := environ.get(CACHE_VARIABLE):
        return _absolute(chosen)
    base = environ.get("XDG_CACHE_HOME") or environ.get("HOME", "/tmp") + "/.cache"  # noqa: S108 - no HOME at all
    return _absolute(base) / "minedraft"


def check_writable(root: Path) -> None:
    """Raise ConfigError unless the cache folder can be written, or created if it does not exist."""
    folder = _nearest(root)
    if not folder.is_dir():
        raise ConfigError("cache", str(root), f"cannot be created ({folder} is not a folder)")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError("cache", str(root), f"cannot be written; set {CACHE_VARIABLE} to another folder")


def check_free_space(folder: Path, needed_bytes: int) -> None:
    """Raise ConfigError unless the file system of `folder`, which need not exist, has `needed_bytes` free."""
    free = shutil.disk_usage(_nearest(folder)).free
    if free < needed_bytes:
        raise ConfigError(
            "cache",
            str(folder),
            f"{needed_bytes / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free; set {CACHE_VARIABLE} to another folder",
        )


@contextmanager
def locked(root: Path, name: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock for building the model `name`, across processes; call `on_wait` before waiting for another holder.

    The lock ends with the process, however that ends.
    """
    (root / "locks").mkdir(parents=True, exist_ok=True)
    with (root / "locks" / f"{name}.lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def staging(root: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder to build `name` in (call under its lock), and remove it afterwards."""
    folder = root / "building" / name
    shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(built: Path, final: Path) -> None:
    """Move a finished folder to `final`, replacing an unusable folder there."""
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        old = built.with_name(built.name + ".old")
        final.rename(old)
        built.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        built.rename(final)


def write_manifest(folder: Path, source: str) -> None:
    """Write the manifest of `folder`: its source, and size, time and sha256 of its files."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != CACHE_MANIFEST:
            stat = path.stat()
            files[path.name] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": file_sha256(path)}
    text = json.dumps({"source": source, "files": files}, indent=1)
    temporary = folder / f"{CACHE_MANIFEST}.new"
    temporary.write_text(text + "\n")
    temporary.replace(folder / CACHE_MANIFEST)


def is_intact(folder: Path, source: str) -> bool:
    """Whether `folder` was made from `source` and its files are unchanged.

    Size and modification time decide; a file whose time differs (the cache was copied) is hashed.
    """
    try:
        manifest = json.loads((folder / CACHE_MANIFEST).read_bytes())
        if manifest["source"] != source:
            return False
        return all(_is_unchanged(folder / name, known) for name, known in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _absolute(path: str) -> Path:
    # Child processes that build a model may run in another working directory.
    return Path(os.path.expanduser(path)).absolute()


def _nearest(folder: Path) -> Path:
    """Return the folder or, if it does not exist, its nearest parent that does."""
    return next(place for place in (folder, *folder.parents) if os.path.exists(place))


def _is_unchanged(path: Path, known: Mapping[str, object]) -> bool:
    stat = path.stat()
    if stat.st_size != known["size"]:
        return False
    return stat.st_mtime_ns == known["mtime_ns"] or file_sha256(path) == known["sha256"]
