"""The generated stubs can be imported with the oldest versions that the package declares."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]


def recorded(pattern: str, place: str) -> set[str]:
    """Return what all stubs of these names have in this place."""
    texts = [path.read_text() for path in (ROOT / "minedraft/v1").glob(pattern)]
    return {".".join(match.groups()) for text in texts for match in re.finditer(place, text)}


def test_stubs_demand_no_more_than_the_declared_versions() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lowest = dict(re.findall(r"^([\w-]+)>=([\d.]+)", line)[0] for line in dependencies)
    assert recorded("*_pb2.py", r"# Protobuf Python Version: ([\d.]+)") == {lowest["protobuf"]}
    assert recorded("*_pb2.py", r"Domain\.PUBLIC,\n +(\d+),\n +(\d+),\n +(\d+),") == {lowest["protobuf"]}
    assert recorded("*_pb2_grpc.py", r"GRPC_GENERATED_VERSION = '([\d.]+)\.0'") == {lowest["grpcio"]}
