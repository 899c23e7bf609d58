"""The architecture as a test: which room may import which, and how much a room may hold."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_LINES = 400
MAX_FUNCTION_LINES = 50
MAX_FILES = 15


@dataclass(frozen=True)
class Room:
    """What the files of a room may import: rooms and third-party packages, besides the standard library.

    A pure room has no I/O, clock, randomness, log or asyncio: the same input gives the same output, on any
    machine, at any time.
    """

    rooms: str = ""
    packages: str = ""
    is_pure: bool = False


# Files on top of minedraft/ form rooms of their own: `types errors ...` is the room "values", and so on.
TOP = {
    "values": "types messages carriers errors sampling_params prompts output",
    "places": "address device",
    "client": "__init__ client loan retrying",
    "local": "local",
}
ROOMS = {
    "values": Room(is_pure=True),
    "places": Room("values"),
    "security": Room("values places", "cryptography"),
    "settings": Room("values places security", "pydantic click"),
    "client": Room("values places security rpc v1", "grpc"),
    "local": Room("values settings client process"),
    "core": Room("values", is_pure=True),
    "engine": Room("values core"),
    "rpc": Room("values places security core.liveness v1", "grpc google grpc_health grpc_reflection grpc_status"),
    "text": Room("values models", "jinja2 tokenizers llguidance"),
    "models": Room("values process"),
    "process": Room("values places", "click uvloop"),
    "launch": Room("values places security settings core.liveness process rpc models text"),
    "server": Room("values places settings core engine rpc v1 text models process observe", "grpc click"),
    "observe": Room("values places settings core engine", "prometheus_client matplotlib opentelemetry"),
    "theory": Room("values", is_pure=True),
    "sim": Room("values core engine theory"),
    "bench": Room("values client theory", "rich"),
    "cli": Room(
        "values places security settings client rpc models text process launch bench observe theory vllm sim",
        "click rich",
    ),
    # vLLM's process; nothing else imports vLLM.
    "vllm": Room("values places core engine rpc models", "vllm transformers prometheus_client torch"),
    "http": Room(
        "values places security settings client process text",
        "click httptools openai pydantic starlette typing_extensions uvicorn uvloop",
    ),
    "v1": Room(packages="grpc google"),
    # A worker knows its settings, the wire, model folders and how to be a process; of the core only blocks of KV.
    "workers": Room(
        "values places security settings rpc v1 models process rounds proposers execution sampling channels",
        "click grpc google torch numpy",
    ),
    "rounds": Room("values core.blocks core.liveness workers.pulse"),
    "proposers": Room(
        "values core.blocks execution sampling workers.sequence workers.clock workers.pulse", "torch numpy"
    ),
    "execution": Room(
        "values places core.blocks models workers.device workers.pulse kernels",
        "torch numpy transformers safetensors accelerate",
    ),
    "kernels": Room("values core.blocks native", "torch numpy triton"),
    "native": Room("values models.cache workers.pulse", "torch numpy"),
    "sampling": Room("values text.grammars workers.sequence native models.generation_config", "torch numpy llguidance"),
    "channels": Room("values places", "torch numpy"),
}
WORKER_ROOMS = ("rounds", "proposers", "execution", "kernels", "native", "sampling", "channels")
# All that pure files may import of the standard library: nothing of it reads a clock, a file or the network.
PURE_MODULES = frozenset(
    {"__future__", "collections", "contextlib", "copy", "dataclasses", "enum", "functools", "heapq", "itertools",
     "math", "numbers", "operator", "statistics", "typing", "uuid"}
)  # fmt: skip
PURE_BUILTINS = frozenset({"open", "print", "input", "breakpoint"})
# These import a module by its name, when it is used.
MAY_IMPORT_BY_NAME = frozenset({"minedraft/__init__.py", "minedraft/cli/main.py"})
# Programs that run as child processes; they import what they need inside functions.
HEAVY = frozenset({"torch", "transformers", "gguf", "accelerate", "numpy", "safetensors"})
MAY_IMPORT_HEAVY = frozenset(
    {"minedraft/models/shipped_drafter.py", "minedraft/models/convert_gguf.py", "minedraft/models/packed_weights.py"}
)
# Only the codec reads and writes message fields; these pass whole messages from and to gRPC.
MAY_IMPORT_STUBS = frozenset(
    {
        "minedraft/client.py",
        "minedraft/server/grpc_door.py",
        "workers/servicer.py",
    }
)
# Of the server only its doors, and what puts the process together, know how clients come in.
DOORS = frozenset({"minedraft/server/grpc_door.py", "minedraft/server/composition.py"})
WIRE = ("grpc", "google", "minedraft.rpc", "minedraft.v1")
# Each can run code from the bytes it reads; multiprocessing sends pickles, json_format parses without limits.
UNSAFE_MODULES = frozenset(
    {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle", "yaml",
     "multiprocessing", "torch.multiprocessing", "torch.package", "tarfile", "google.protobuf.json_format"}
)  # fmt: skip
UNSAFE_CALLS = frozenset(
    {"eval", "exec", "compile", "builtins.eval", "builtins.exec", "builtins.compile", "torch.load", "torch.jit.load",
     "torch.hub.load", "torch.export.load", "torch.ops.load_library", "pandas.read_pickle", "logging.config.listen",
     "os.system", "os.popen", "os.fork", "subprocess.getoutput", "subprocess.getstatusoutput",
     "asyncio.create_subprocess_shell", "concurrent.futures.ProcessPoolExecutor"}
)  # fmt: skip
# Methods that unpickle or start a shell, whatever they are called on.
UNSAFE_METHODS = frozenset(
    {"subprocess_shell", "all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list",
     "send_object_list", "recv_object_list", "extractall"}
)  # fmt: skip
# Arguments that must keep the value that runs nothing.
UNSAFE_ARGUMENTS = {"trust_remote_code": "False", "shell": "False", "allow_pickle": "False", "weights_only": "True"}
MUST_SAY_SAFETENSORS = "AutoModelForCausalLM.from_pretrained"
# Every program has one, and a module's log is its own.
MAY_REPEAT = frozenset({"main", "command", "logger"})


def _product_files() -> list[Path]:
    files = [*ROOT.glob("minedraft/**/*.py"), *ROOT.glob("workers/**/*.py")]
    return sorted(path for path in files if path.parent != ROOT / "minedraft" / "v1")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _room(parts: tuple[str, ...]) -> str:
    """Return the room of a module: ("minedraft", "rpc", "codec") is in "rpc"."""
    if parts[0] in ("workers", "minedraft_workers"):
        is_folder = len(parts) > 1 and (ROOT / "workers" / parts[1]).is_dir()
        return parts[1] if is_folder else "workers"
    below = parts[1] if len(parts) > 1 else "__init__"
    if below in ROOMS and below not in TOP:
        return below
    return next((room for room, files in TOP.items() if below in files.split()), "no room")


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


FILES = [pytest.param(path, id=_name(path)) for path in _product_files()]


@pytest.mark.parametrize("path", FILES)
def test_a_file_imports_only_what_its_room_may(path: Path):
    name, own = _name(path), _room(path.relative_to(ROOT).with_suffix("").parts)
    assert own in ROOMS, f"{name} is in no room of the table"
    room = ROOMS[own]
    may_import = {own, *room.rooms.split()}
    for dotted, at_import in _imports(ast.parse(path.read_text())):
        top, *below = dotted.split(".")
        if top in ("minedraft", "minedraft_workers"):
            other = _room((top, *below))
            allowed = (
                other in may_import or f"{other}.{below[1] if other in ROOMS and len(below) > 1 else ''}" in may_import
            )
            allowed = allowed or f"{other}.{below[0] if below else ''}" in may_import
            assert allowed, f"{dotted}: {own} may not import {other}"
        elif top in HEAVY and name in MAY_IMPORT_HEAVY:
            assert not at_import, f"{dotted}: imported where it is used"
        elif top not in sys.stdlib_module_names:
            assert top in room.packages.split(), f"{dotted}: {own} may not import {top}"
        elif room.is_pure:
            assert top in PURE_MODULES, f"{dotted} in the pure {own}"
        if dotted.startswith("minedraft.v1"):
            assert own == "rpc" or name in MAY_IMPORT_STUBS, f"{dotted}: only the codec knows fields"


@pytest.mark.parametrize("path", [path for path in FILES if path.values[0].parent.name == "server"])
def test_the_service_knows_no_wire(path: Path):
    name = _name(path)
    found = [dotted for dotted, _ in _imports(ast.parse(path.read_text())) if dotted.startswith(WIRE)]
    assert name in DOORS or not found, f"{found}: only {', '.join(sorted(DOORS))}"


def test_every_folder_says_what_it_is_and_what_it_may_import():
    for path in (*ROOT.glob("minedraft/*/**/__init__.py"), *ROOT.glob("workers/**/__init__.py")):
        own = _room(path.parent.relative_to(ROOT).parts)
        if own == "v1":  # generated
            continue
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        last = " ".join(docstring[docstring.rfind("May import:") :].split())  # it may have several lines
        is_part = path.parent.name not in (own, "workers")  # core/policy is a part of core
        rooms = [*ROOMS[own].rooms.split(), *([own] if is_part else [])]
        assert last == f"May import: {', '.join(rooms) or 'nothing'}.", _name(path)


@pytest.mark.parametrize("path", FILES)
def test_modules_are_imported_by_statements_and_pure_rooms_do_nothing(path: Path):
    own = _room(path.relative_to(ROOT).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            by_name = call.endswith("import_module") or call == "__import__"
            assert not by_name or _name(path) in MAY_IMPORT_BY_NAME, f"line {node.lineno}: {call}"
            assert not (ROOMS[own].is_pure and call in PURE_BUILTINS), f"line {node.lineno}: {call} in the pure {own}"


def _find_unsafe(tree: ast.AST) -> Iterator[str]:
    """Yield what could run code from data: imports, calls under whatever name they were imported, arguments."""
    full_names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full_names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            full_names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for dotted, _ in _imports(tree):
        yield from (f"import of {module}" for module in UNSAFE_MODULES if f"{dotted}.".startswith(f"{module}."))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            first, dot, rest = ast.unparse(node).partition(".")
            if (name := f"{full_names.get(first, first)}{dot}{rest}") in UNSAFE_CALLS:
                yield f"line {node.lineno}: {name}"
        if isinstance(node, ast.Call):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            for argument, safe in UNSAFE_ARGUMENTS.items():
                if given.get(argument, safe) != safe:
                    yield f"line {node.lineno}: {argument}={given[argument]}"
            if isinstance(node.func, ast.Attribute) and node.func.attr in UNSAFE_METHODS:
                yield f"line {node.lineno}: .{node.func.attr}"
            is_model = ast.unparse(node.func) == MUST_SAY_SAFETENSORS
            if is_model and "gguf_file" not in given and given.get("use_safetensors") != "True":
                yield f"line {node.lineno}: a model is loaded without use_safetensors=True"


@pytest.mark.parametrize("path", FILES)
def test_nothing_can_run_code_from_data(path: Path):
    assert list(_find_unsafe(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from torch import load as read\nread(path)",
        "import torch as t\nt.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "f = eval",
        "from os import system\nsystem(line)",
        "from torch.multiprocessing import Queue",
        "from google.protobuf import json_format",
        "import multiprocessing.connection",
        "dist.broadcast_object_list(values)",
        "subprocess.run(line, shell=True)",
        "AutoConfig.from_pretrained(path, trust_remote_code=trust)",
        "AutoModelForCausalLM.from_pretrained(path)",
        "loop.subprocess_shell(make, line)",
    ],
)
def test_what_can_run_code_from_data_is_found(source: str):
    assert list(_find_unsafe(ast.parse(source)))


@pytest.mark.parametrize("path", FILES)
def test_channels_and_servers_are_opened_in_one_place_with_the_options_of_their_kind(path: Path):
    if _name(path) == "minedraft/rpc/channel.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            assert not call.endswith(("insecure_channel", "secure_channel")), f"line {node.lineno}"
            assert call not in {"grpc.server", "grpc.aio.server", "aio.server"}, f"line {node.lineno}"


@pytest.mark.parametrize("path", FILES)
def test_functions_fit_a_screen_and_docstrings_ask_nothing(path: Path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            num_lines = node.end_lineno - node.lineno + 1
            assert num_lines <= MAX_FUNCTION_LINES, f"{node.name} has {num_lines} lines"
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node) or ""
            assert not re.search(r"\w[?](\s|$)", docstring), (
                f"a question in the docstring of {getattr(node, 'name', path.name)}"
            )


def test_a_public_name_has_one_meaning():
    places: dict[str, list[str]] = defaultdict(list)
    for path in _product_files():
        for node in ast.parse(path.read_text()).body:
            names: list[str] = []
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
            for name in names:
                if not name.startswith("_") and name not in MAY_REPEAT:
                    places[name].append(_name(path))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_no_folder_holds_more_than_a_screen():
    folders: dict[Path, int] = defaultdict(int)
    for folder in ("minedraft", "workers", "tests", "scripts"):
        for path in ROOT.glob(f"{folder}/**/*"):
            is_ours = path.is_file() and "__pycache__" not in path.parts and ROOT / "minedraft/v1" not in path.parents
            folders[path.parent] += is_ours
    assert {_name(folder): count for folder, count in folders.items() if count > MAX_FILES} == {}


def test_the_package_has_every_folder():
    packages = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent for path in (*ROOT.glob("minedraft/**/*.py"), *ROOT.glob("workers/**/*.py"))}
    found = {_name(folder).replace("/", ".") for folder in folders}
    assert packages == {
        name.replace("workers", "minedraft_workers", 1) if name.startswith("workers") else name for name in found
    }


def test_every_third_party_import_is_a_declared_dependency():
    used = {package for room in ROOMS.values() for package in room.packages.split()} | {"gguf"}
    declared = {
        "google": "protobuf",
        "grpc": "grpcio",
        "grpc_health": "grpcio-health-checking",
        "grpc_reflection": "grpcio-reflection",
        "grpc_status": "grpcio-status",
        "opentelemetry": "opentelemetry-sdk",
        "prometheus_client": "prometheus-client",
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    names = {line.split(">")[0].split("=")[0].strip() for line in lines}
    assert {declared.get(package, package) for package in used} <= names


def test_no_file_is_too_long():
    folders = ("minedraft", "workers", "tests", "scripts")
    files = [path for folder in folders for path in ROOT.glob(f"{folder}/**/*.py") if path.parent.name != "v1"]
    too_long = {_name(path): lines for path in files if (lines := len(path.read_text().splitlines())) > MAX_LINES}
    assert not too_long
