"""The architecture as a test: who may import whom, and how long a file may be."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_LINES = 400

# Pure policy and plain values: the same input gives the same output, on any machine, at any time.
PURE_CORE = frozenset(
    {
        "batches", "blocks", "draft_book", "errors", "ledger", "output", "request", "round_stats", "rounds",
        "sampling_params", "scheduler", "types", "usage",
    }
)  # fmt: skip
IMPURE = frozenset(
    {"asyncio", "grpc", "logging", "os", "random", "secrets", "socket", "subprocess", "threading", "time"}
)
HEAVY = frozenset({"torch", "transformers", "gguf", "accelerate", "numpy", "safetensors"})
# Programs that run as child processes, and what only they use; they import what they need inside functions.
MAY_IMPORT_HEAVY = frozenset({"minedraft/assemble.py", "minedraft/convert_gguf.py", "minedraft/row_scales.py"})
# What workers may know of the package: values, wire, model folders. Never the scheduler's side.
OPEN_TO_WORKERS = frozenset(
    {
        "actor", "address", "blocks", "errors", "health", "model_config", "model_folder", "process", "rpc",
        "sampling_params", "tokenizer", "types", "v1", "vocabulary", "weight_files",
    }
)  # fmt: skip
# Only the codec reads and writes message fields; these pass whole messages from and to gRPC.
MAY_IMPORT_STUBS = frozenset(
    {
        "minedraft/client.py",
        "minedraft/server.py",
        "minedraft/service.py",
        "minedraft/worker_client.py",
        "workers/servicer.py",
    }
)
# Each can run code from the bytes it reads.
UNSAFE_MODULES = frozenset({"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"})
UNSAFE_CALLS = frozenset({"eval", "exec", "compile", "torch.load", "torch.hub.load", "os.system"})
DECLARED = frozenset(
    {
        "accelerate", "click", "gguf", "google", "grpc", "grpc_health", "grpc_status", "jinja2", "numpy", "pydantic",
        "rich", "safetensors", "tokenizers", "torch", "transformers",
    }
)  # fmt: skip


def _product_files() -> list[Path]:
    files = [*ROOT.glob("minedraft/**/*.py"), *ROOT.glob("workers/**/*.py")]
    return [path for path in files if path.parent != ROOT / "minedraft" / "v1"]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Yield (absolute dotted name, is it imported when the module is) for every import."""
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    deferred = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        at_import = id(node) not in typing_only | deferred
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            yield from ((f"{module}.{alias.name}", at_import) for alias in node.names)


def _part(dotted: str) -> str:
    """Return the module below the package: `minedraft.rpc.codec` -> `rpc`."""
    return dotted.split(".")[1] if "." in dotted else ""


FILES = [pytest.param(path, id=_name(path)) for path in sorted(_product_files())]


@pytest.mark.parametrize("path", FILES)
def test_a_file_imports_only_what_its_layer_may(path: Path):
    name = _name(path)
    for dotted, at_import in _imports(ast.parse(path.read_text())):
        top = dotted.split(".")[0]
        if name.startswith("minedraft/"):
            assert top not in {"minedraft_workers", "workers"}, f"{dotted}: workers are started by command line"
            assert top not in HEAVY or (name in MAY_IMPORT_HEAVY and not at_import), (
                f"{dotted} in the scheduler process"
            )
            if name.removeprefix("minedraft/").removesuffix(".py") in PURE_CORE:
                assert top not in IMPURE, f"{dotted} in the pure core"
                assert top != "minedraft" or _part(dotted) in PURE_CORE, f"{dotted} in the pure core"
        elif top == "minedraft":
            assert _part(dotted) in OPEN_TO_WORKERS, f"{dotted} is not for workers"
        if dotted.startswith("minedraft.v1"):
            assert name.startswith("minedraft/rpc/") or name in MAY_IMPORT_STUBS, (
                f"{dotted}: only the codec knows fields"
            )


@pytest.mark.parametrize("path", FILES)
def test_nothing_can_run_code_from_data(path: Path):
    tree = ast.parse(path.read_text())
    for dotted, _ in _imports(tree):
        assert dotted.split(".")[0] not in UNSAFE_MODULES
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in UNSAFE_CALLS, f"line {node.lineno}"
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("trust_remote_code", "False") == "False", f"line {node.lineno}"
            assert keywords.get("shell", "False") == "False", f"line {node.lineno}"


@pytest.mark.parametrize("path", FILES)
def test_channels_and_servers_are_opened_in_one_place_with_the_options_of_their_kind(path: Path):
    if _name(path) == "minedraft/rpc/channel.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            assert not call.endswith(("insecure_channel", "secure_channel")), f"line {node.lineno}"
            assert call not in {"grpc.server", "grpc.aio.server", "aio.server"}, f"line {node.lineno}"


def test_every_third_party_import_is_a_declared_dependency():
    used = {dotted.split(".")[0] for path in _product_files() for dotted, _ in _imports(ast.parse(path.read_text()))}
    assert used - sys.stdlib_module_names - {"minedraft", "minedraft_workers"} <= DECLARED


def test_no_file_is_too_long():
    folders = ("minedraft", "workers", "tests", "scripts")
    files = [path for folder in folders for path in ROOT.glob(f"{folder}/**/*.py") if path.parent.name != "v1"]
    too_long = {_name(path): lines for path in files if (lines := len(path.read_text().splitlines())) > MAX_LINES}
    assert not too_long
