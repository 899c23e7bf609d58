"""Models known by name: lists them, fetches them, and builds their folders in the cache."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from minedraft.errors import ConfigError, ModelError
from minedraft.models.cache import (
    CACHE_VARIABLE,
    cache_root,
    check_free_space,
    check_writable,
    is_intact,
    locked,
    publish,
    staging,
    write_manifest,
)
from minedraft.models.files import file_sha256
from minedraft.models.folder import check_model_folder
from minedraft.models.heads.folder import check_head_folder, is_head_folder
from minedraft.models.progress import OnProgress, Progress, ignore_progress
from minedraft.models.sources import KNOWN_MODELS, AssetSource, GgufSource, KnownModel
from minedraft.models.wheels import fetch_wheels, join_members
from minedraft.process.with_parent import child_command, child_environment

READY = "ready"
NOT_FETCHED = "not fetched"
UNAVAILABLE = "unavailable"  # a drafter whose assets are not in this installation
DEFAULT_PAIR = "smollm2"  # served if no folders are given
_ASSETS = Path(__file__).parents[1] / "assets"
_CONVERSION = "gguf to bf16, version 1"  # a new number invalidates every cached conversion
_CONVERT_MODULES = ("gguf", "accelerate", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class Pair:
    """Model folders to serve together; without a draft model, drafts come from prompt n-grams."""

    target: Path
    draft: Path | None


@dataclass(frozen=True, slots=True)
class PairNames:
    target: str
    draft: str


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One line of `minedraft models`.

    Attributes:
        role: "target", "drafter" or "head".
        state: READY, NOT_FETCHED or UNAVAILABLE.
        path: where the model folder is, or will be.
        size: bytes of the folder: measured if ready, expected otherwise.
        download_size: bytes that fetching it transfers.
    """

    name: str
    role: str
    state: str
    path: Path
    size: int
    download_size: int
    licence: str


PAIRS = {
    "smollm2": PairNames("smollm2-135m-instruct", "smollm2-135m-drafter"),
    "qwen": PairNames("qwen2.5-coder-1.5b-instruct", "qwen2.5-coder-0.5b-instruct"),
}


def list_models() -> list[ModelEntry]:
    """Return every known model with its state in the cache."""
    return [_to_entry(model) for model in KNOWN_MODELS.values()]


def ensure_pair(
    name: str = DEFAULT_PAIR, on_progress: OnProgress = ignore_progress, wheels_dir: Path | None = None
) -> Pair:
    """Return the folders of a pair of PAIRS, after fetching the missing ones (see ensure_model)."""
    target, *draft = (ensure_model(each, on_progress, wheels_dir) for each in _models_of(name))
    return Pair(target, draft[0] if draft else None)


def find_pair(name: str = DEFAULT_PAIR) -> Pair | None:
    """Return the folders of a pair of PAIRS; None unless all of them are in the cache."""
    models = [KNOWN_MODELS[each] for each in _models_of(name)]
    if not all(_is_ready(model) for model in models):
        return None
    target, *draft = (_folder(model) for model in models)
    return Pair(target, draft[0] if draft else None)


def check_fetch(name: str = DEFAULT_PAIR) -> None:
    """Raise ConfigError unless the missing models of a pair could be built here. Neither fetches nor writes."""
    missing = [model for each in _models_of(name) if not _is_ready(model := KNOWN_MODELS[each])]
    if missing:
        check_writable(cache_root())
    for model in missing:
        if isinstance(model.source, GgufSource):
            _check_conversion(model, model.source, None)


def ensure_model(name: str, on_progress: OnProgress = ignore_progress, wheels_dir: Path | None = None) -> Path:
    """Return the folder of a known model, after building it in the cache if necessary.

    Args:
        wheels_dir: a folder that holds the pinned wheels; nothing is downloaded then.

    Raises:
        ConfigError, ModelError: an unknown name, missing packages or disk space, no network, a file
            that is not the pinned one.
    """
    model = _find(name)
    if _is_ready(model):
        return _folder(model)
    report, root = _named(on_progress, name), cache_root()
    try:
        with locked(root, name, on_wait=lambda: report(Progress("waiting for another process to build it"))):
            if not _is_ready(model):  # another process may have built it meanwhile
                _build(model, report, wheels_dir)
    except OSError as error:
        limit = f"cannot be written ({error.strerror or error}); set {CACHE_VARIABLE} to another folder"
        raise ConfigError("cache", str(error.filename or root), limit) from error
    return _folder(model)


def is_available(name: str) -> bool:
    """Whether a known model can be built here: a shipped drafter needs its assets."""
    model = _find(name)
    return isinstance(model.source, GgufSource) or any(_asset_files(model))


def _build(model: KnownModel, on_progress: OnProgress, wheels_dir: Path | None) -> None:
    with staging(cache_root(), model.name) as folder:
        built = folder / model.name
        if isinstance(model.source, GgufSource):
            _build_from_gguf(model, model.source, built, on_progress, wheels_dir)
        else:
            target = ensure_model(model.source.target, on_progress, wheels_dir)
            _build_from_asset(model, target, built, on_progress)
        on_progress(Progress("checking"))
        if isinstance(model.source, AssetSource) and is_head_folder(built):
            check_head_folder(
                built, check_model_folder(_folder(KNOWN_MODELS[model.source.target]), "target"), model.name
            )
        else:
            check_model_folder(built, model.name)
        write_manifest(built, _source_text(model))
        publish(built, _folder(model))
    shutil.rmtree(_wheel_store(model), ignore_errors=True)


def _build_from_gguf(
    model: KnownModel, source: GgufSource, built: Path, on_progress: OnProgress, wheels_dir: Path | None
) -> None:
    _check_conversion(model, source, wheels_dir)
    wheels = fetch_wheels(source.wheels, _wheel_store(model), on_progress, wheels_dir)
    built.mkdir()
    gguf = built.parent / "model.gguf"
    join_members(source.wheels, wheels, gguf, source.sha256, on_progress)
    command = ["minedraft.models.convert_gguf", str(gguf), str(built), *source.eos_tokens]
    _run_child(model.name, command, on_progress, source.peak_memory_bytes)
    gguf.unlink()


def _check_conversion(model: KnownModel, source: GgufSource, wheels_dir: Path | None) -> None:
    """Raise ConfigError unless the packages for a conversion, and room on the disk, are there."""
    if missing := [module for module in _CONVERT_MODULES if importlib.util.find_spec(module) is None]:
        raise ConfigError(
            "model",
            model.name,
            f"converting it needs {' and '.join(missing)}: {sys.executable} -m pip install {' '.join(missing)}",
        )
    fetched = sum(path.stat().st_size for path in _wheel_store(model).glob("*.whl"))
    download = 0 if wheels_dir else sum(wheel.num_bytes for wheel in source.wheels) - fetched
    check_free_space(cache_root(), download + source.num_bytes + model.folder_bytes)


def _build_from_asset(model: KnownModel, target: Path, built: Path, on_progress: OnProgress) -> None:
    on_progress(Progress("assembling"))
    check_free_space(built.parent, model.folder_bytes)
    command = ["minedraft.models.shipped_drafter", str(_ASSETS / model.name), str(target), str(built)]
    _run_child(model.name, command, on_progress, model.folder_bytes * 3)


def _run_child(name: str, command: Sequence[str], on_progress: OnProgress, peak_memory_bytes: int) -> None:
    """Run `python -m COMMAND`, and report each line of its standard output as a step.

    Raises:
        ConfigError: the child was killed, which means too little memory. ModelError: it failed.
    """
    with subprocess.Popen(
        child_command(*command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error"),
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stderr is not None
            for line in child.stdout:
                on_progress(Progress(line.strip()))
            said = child.stderr.read()
        except BaseException:
            child.kill()
            raise
    if child.returncode == 0:
        return
    if child.returncode == -9:
        raise ConfigError(
            "model", name, f"the conversion was killed; it needs {peak_memory_bytes / 1e9:.1f} GB of memory"
        )
    last = said.strip().splitlines()[-1:] or ["no message"]
    raise ModelError("model", name, f"the conversion failed ({last[0]})")


def _models_of(pair: str) -> list[str]:
    """Return the names of a pair's target and, if it can be built here, drafter."""
    names = PAIRS.get(pair)
    if names is None:
        raise ConfigError("pair", pair, f"known pairs: {', '.join(PAIRS)}")
    return [names.target, *([names.draft] if is_available(names.draft) else [])]


def _is_ready(model: KnownModel) -> bool:
    return is_intact(_folder(model), _source_text(model))


def _find(name: str) -> KnownModel:
    model = KNOWN_MODELS.get(name)
    if model is None:
        raise ConfigError("model", name, f"known models: {', '.join(KNOWN_MODELS)}; or give a model folder")
    return model


def _named(on_progress: OnProgress, name: str) -> OnProgress:
    return lambda progress: on_progress(replace(progress, model=progress.model or name))


def _to_entry(model: KnownModel) -> ModelEntry:
    path = _folder(model)
    state = UNAVAILABLE
    if is_available(model.name):
        state = READY if _is_ready(model) else NOT_FETCHED
    size = sum(file.stat().st_size for file in path.iterdir()) if state == READY else model.folder_bytes
    wheels = model.source.wheels if isinstance(model.source, GgufSource) else ()
    return ModelEntry(
        name=model.name,
        role=model.role,
        state=state,
        path=path,
        size=size,
        download_size=sum(wheel.num_bytes for wheel in wheels),
        licence=model.licence,
    )


def _folder(model: KnownModel) -> Path:
    return cache_root() / "models" / model.name


def _wheel_store(model: KnownModel) -> Path:
    return cache_root() / "wheels" / model.name


def _asset_files(model: KnownModel) -> list[Path]:
    folder = _ASSETS / model.name
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _source_text(model: KnownModel) -> str:
    """Return the source that the manifest of a usable cached folder must name."""
    if isinstance(model.source, AssetSource):
        digest = hashlib.sha256()
        for path in _asset_files(model):
            digest.update(f"{path.name}\0".encode())
            digest.update(bytes.fromhex(file_sha256(path)))
        return f"assets {digest.hexdigest()} on {_source_text(KNOWN_MODELS[model.source.target])}"
    return f"{_CONVERSION}: {model.source.sha256}"
