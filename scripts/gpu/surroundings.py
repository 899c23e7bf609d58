"""The environment of every step: what it can import, and folders that it can write. Standard library only."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
_QUIET = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
# Folders of caches, and of sockets; without the variable each is in the home folder, or for temporary files.
_FOLDERS = ("XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "HF_HOME",
            "CUDA_CACHE_PATH", "MINEDRAFT_CACHE")  # fmt: skip
_NEEDED_BYTES = 256 << 20
_MAX_TEMPORARY = 40  # characters: the path of a socket in a folder there may have 107


def make_environment(site: Path, given: Mapping[str, str], *, is_cuda: bool) -> dict[str, str]:
    """Return the environment of the steps.

    Where the home folder cannot be written, an empty one in `site` stands for it: Triton and the native kernels are
    built into a cache there, and without one a GPU would run by torch's operators.

    Args:
        site: an empty folder that lasts as long as the steps; the product's workers are put on the path by it.
        given: this process's environment.
        is_cuda: whether Triton must not be told to interpret its programs.
    """
    link = site / "minedraft_workers"
    if not link.is_symlink():
        link.symlink_to(ROOT / "workers")
    made = {"OMP_NUM_THREADS": "1"} | dict(given) | _QUIET
    made["PYTHONPATH"] = os.pathsep.join(filter(None, (str(site), str(ROOT), given.get("PYTHONPATH", ""))))
    if is_cuda:
        made.pop("TRITON_INTERPRET", None)
    for name in _FOLDERS:
        if name in made and not can_write(Path(made[name])):
            del made[name]
    home = Path(os.path.expanduser("~"))
    if not can_write(home):
        made.setdefault("PYTHONUSERBASE", str(home / ".local"))  # what is installed there
        made["HOME"] = str(site / "home")
        (site / "home").mkdir(exist_ok=True)
    if len(tempfile.gettempdir()) > _MAX_TEMPORARY and can_write(Path("/tmp")):  # noqa: S108 - short
        made["TMPDIR"] = "/tmp"  # noqa: S108
    return made


def can_write(folder: Path) -> bool:
    """Return whether a folder, or the nearest that exists above it, takes files, with room for those of a cache."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return shutil.disk_usage(folder).free > _NEEDED_BYTES
    except OSError:
        return False
