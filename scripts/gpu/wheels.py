"""The packages that a machine without a network lacks: fetched here, and put on the path there.

Nothing is installed into the system. Standard library only.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from scripts.gpu.surroundings import ROOT
from scripts.lib.env.pins import CONSTRAINTS, pinned

FOLDER = ROOT / ".whl"
PYTHON, PLATFORMS = "3.12", ("manylinux_2_31_x86_64", "manylinux_2_28_x86_64", "manylinux2014_x86_64", "any")
PACKAGES = (
    "protobuf",
    "grpcio",
    "grpcio-health-checking",
    "grpcio-reflection",
    "grpcio-status",
    "googleapis-common-protos",
    "pydantic",
    "pydantic_core",
    "annotated-types",
    "typing-inspection",
    "llguidance",
    "prometheus_client",
    "uvloop",
    "pytest",
    "pluggy",
    "iniconfig",
    "packaging",
    "Pygments",
)
# What fails first where they are missing or too old; the stubs check the versions of protobuf and grpcio.
_PROBE = (
    "import minedraft.v1.worker_pb2_grpc, pydantic, grpc_health.v1.health, grpc_status, google.rpc.status_pb2, "
    "grpc_reflection.v1alpha.reflection, llguidance, prometheus_client, uvloop, pytest"
)


def to_fetch(there: Sequence[str]) -> list[str]:
    """Return the packages that a machine lacks which has those of `there`.

    Raises:
        SystemExit: one of them is none that would be fetched.
    """
    if unknown := sorted(set(there) - set(PACKAGES)):
        sys.exit(f"--there: {unknown[0]!r} is none of {', '.join(PACKAGES)}")
    return [name for name in PACKAGES if name not in there]


def fetch(say: Callable[[str], object], there: Sequence[str] = (), python: str = PYTHON) -> int:
    """Download the wheels to FOLDER, which has no others then. Return pip's exit code.

    Args:
        there: packages that the machine has. python: its Python, "3.12".
    """
    names = to_fetch(there)
    for old in FOLDER.glob("*.whl"):
        old.unlink()
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--quiet"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, "--dest", str(FOLDER)]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    code = subprocess.run([*command, *pinned(names, CONSTRAINTS.read_text())], check=False).returncode
    wheels = sorted(FOLDER.glob("*.whl"))
    size_mib, tree_mib = (sum(path.stat().st_size for path in paths) / 2**20 for paths in (wheels, _tracked()))
    say(f"{len(wheels)} wheels for Python {python} in {FOLDER.name}/, {size_mib:.1f} MiB")
    say(f"with the tracked files {size_mib + tree_mib:.1f} MiB; --there leaves out what the machine has")
    return code


def _tracked() -> list[Path]:
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False)
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def find_lack(environment: Mapping[str, str]) -> str:
    """Return why this Python cannot import the product's wire, in one line; "" if it can."""
    done = subprocess.run([sys.executable, "-P", "-c", _PROBE], env=dict(environment), capture_output=True, text=True)
    said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return said[-1] if done.returncode else ""


def unpack(site: Path) -> str:
    """Put the wheels of FOLDER into a folder on the path. Return what went wrong, or "".

    They are only unpacked, as pip may be missing: none of them has files for other places.
    """
    found = sorted(FOLDER.glob("*.whl"))
    if not found:
        return f"{FOLDER.name}/ has no wheels: run scripts/gpu_check --prepare where there is a network"
    try:
        for wheel in found:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
    except (OSError, zipfile.BadZipFile) as error:
        return f"{wheel.name}: {error}"
    return ""
