import dataclasses
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import zipfile
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

import minedraft.models.catalogue
from minedraft.errors import ConfigError, ModelError
from minedraft.models.cache import write_manifest
from minedraft.models.catalogue import NOT_FETCHED, PAIRS, READY, PairNames, ensure_model, ensure_pair, list_models
from minedraft.models.folder import DRAFT_VOCAB_NAME, check_model_folder, check_pair
from minedraft.models.generation_config import read_eos_ids
from minedraft.models.packed_weights import pack_matrices
from minedraft.models.progress import Progress
from minedraft.models.shipped_drafter import FORMAT, fingerprint_target
from minedraft.models.sources import KNOWN_MODELS, AssetSource, GgufSource, KnownModel, PinnedWheel
from minedraft.models.weight_files import read_all_tensors
from minedraft.text.tokenizer import Tokenizer
from tests.support.full_disk import full_disk
from tests.support.tiny_gguf import write_tiny_gguf
from tests.support.tiny_models import make_tiny_model

NAME = "tiny-two-parts"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_wheel(path: Path, name: str, member: str, data: bytes) -> PinnedWheel:
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return PinnedWheel(f"{name}==1.0", path.name, _sha256(path), path.stat().st_size, member)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("original"), vocab_size=420, rope_theta=10000.0)


@pytest.fixture(scope="module")
def wheels_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheels")


@pytest.fixture(scope="module")
def known(original: Path, wheels_dir: Path) -> KnownModel:
    """The tiny model as the registry would know it: a GGUF file cut into two wheels."""
    gguf = write_tiny_gguf(original, wheels_dir / "tiny.gguf").read_bytes()
    cut = len(gguf) // 2
    parts = [
        _write_wheel(wheels_dir / f"tiny_part{i}-1.0-py3-none-any.whl", f"tiny_part{i}", f"tiny/part{i}.bin", data)
        for i, data in enumerate((gguf[:cut], gguf[cut:]), 1)
    ]
    source = GgufSource(
        tuple(parts), hashlib.sha256(gguf).hexdigest(), len(gguf), ("<|im_end|>", "<|endoftext|>"), 10**9
    )
    return KnownModel(NAME, "target", "none", 10**6, source)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, known: KnownModel):
    def add(**changes: object) -> None:
        source = dataclasses.replace(known.source, **changes)
        monkeypatch.setitem(KNOWN_MODELS, NAME, dataclasses.replace(known, source=source))

    monkeypatch.setenv("MINEDRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    add()
    return add


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.slow
def test_wheels_become_a_model_folder_once(register, original: Path, wheels_dir: Path, tmp_path: Path):
    import torch
    from transformers import AutoModelForCausalLM

    steps: list[Progress] = []
    folder = ensure_model(NAME, steps.append, wheels_dir)
    assert [*dict.fromkeys(progress.step for progress in steps)] == [
        "downloading", "unpacking", "reading the tokenizer", "reading the weights",
        "writing the weights", "checking",
    ]  # fmt: skip
    assert {progress.model for progress in steps} == {NAME}
    assert check_model_folder(folder, "target").vocab_size == 420
    assert read_eos_ids(folder) == (2, 0)
    assert {tensor.dtype for tensor in read_all_tensors(folder).values()} == {"BF16"}
    assert {path.parent for path in _files(tmp_path / "cache")} == {folder}, "only the result stays"

    ours, theirs = Tokenizer.load(folder), Tokenizer.load(original)
    text = "The small model drafts, é🎉 <|im_end|>"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.fingerprint == theirs.fingerprint, "rows that only pad are no tokens"
    chat = [{"role": "user", "content": "hello"}]
    assert ours.render_chat(chat) == theirs.render_chat(chat)

    ids = torch.tensor([theirs.encode(text)])
    converted, expected = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.bfloat16) for p in (folder, original))
    with torch.inference_mode():
        assert torch.equal(converted(ids).logits, expected(ids).logits)

    assert ensure_model(NAME, _fail_on_progress) == folder
    assert [entry.state for entry in list_models() if entry.name == NAME] == [READY]

    (folder / "model.safetensors").touch()
    assert ensure_model(NAME, _fail_on_progress) == folder, "a copy with another time of change is hashed"
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert [entry.state for entry in list_models() if entry.name == NAME] == [NOT_FETCHED]


def _write_program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def _fail_on_progress(progress: Progress) -> None:
    raise AssertionError(f"nothing was to be done, but: {progress}")


@pytest.fixture
def asset(register, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The asset folder of the pair "tiny", whose target is in the cache."""
    target = Path(shutil.copytree(original, tmp_path / "cache" / "models" / NAME))
    write_manifest(target, minedraft.models.catalogue._source_text(KNOWN_MODELS[NAME]))
    folder = tmp_path / "assets" / "tiny-drafter"
    _write_asset(folder, target)
    monkeypatch.setattr(minedraft.models.catalogue, "_ASSETS", folder.parent)
    drafter = KnownModel("tiny-drafter", "drafter", "none", 10**6, AssetSource(target=NAME))
    monkeypatch.setitem(KNOWN_MODELS, drafter.name, drafter)
    monkeypatch.setitem(PAIRS, "tiny", PairNames(NAME, drafter.name))
    return folder


@pytest.mark.slow
def test_a_shipped_drafter_is_completed_with_the_targets_weights(asset: Path, tmp_path: Path):
    target = tmp_path / "cache" / "models" / NAME
    pair = ensure_pair("tiny")
    assert pair.target == target
    assert pair.draft is not None
    assert (pair.draft / DRAFT_VOCAB_NAME).is_file()
    check_pair(check_model_folder(target, "target"), check_model_folder(pair.draft, "draft"))
    assert ensure_pair("tiny", _fail_on_progress) == pair

    (asset / "README.md").write_text("changed")
    with pytest.raises(ModelError, match="its sha256 differs from the manifest"):
        ensure_pair("tiny")
    shutil.rmtree(asset.parent)
    assert ensure_pair("tiny").draft is None, "without the assets, drafts come from n-grams"


@pytest.mark.slow
def test_a_drafter_assembled_from_what_an_earlier_version_shipped_is_assembled_again(asset: Path):
    from safetensors.torch import load_file

    pair = ensure_pair("tiny")
    assert pair.draft is not None
    earlier = load_file(pair.draft / "model.safetensors")
    shutil.rmtree(asset)
    _write_asset(asset, pair.target, factor=2)
    assert [entry.state for entry in list_models() if entry.name == "tiny-drafter"] == [NOT_FETCHED]
    assert ensure_pair("tiny") == pair
    later = load_file(pair.draft / "model.safetensors")
    assert all((later[name] == (2 if ".layers." in name else 1) * earlier[name]).all() for name in earlier)
    assert later.keys() == earlier.keys()
    assert ensure_pair("tiny", _fail_on_progress) == pair


def _write_asset(folder: Path, target: Path, factor: int = 1) -> None:
    """Ship layer 0 of the target, times `factor`, as a drafter of one layer."""
    import torch
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True)
    weights = load_file(target / "model.safetensors")
    trained = {name: weight * factor for name, weight in weights.items() if ".layers.0." in name}
    packed = pack_matrices({name: weight.numpy() for name, weight in trained.items() if weight.ndim == 2})
    norms = {name: weight.bfloat16() for name, weight in trained.items() if weight.ndim == 1}
    matrices = {name: torch.from_numpy(tensor) for name, tensor in packed.items()}
    save_file(matrices | norms, folder / "trained_layers.safetensors")
    save_file({"ids": torch.arange(50, dtype=torch.int32)}, folder / "draft_vocab.safetensors")
    config = json.loads((target / "config.json").read_text()) | {"num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("A drafter.")
    manifest = {
        "format": FORMAT,
        "target": NAME,
        "target_fingerprint": fingerprint_target(target),
        "sha256": {path.name: _sha256(path) for path in folder.iterdir()},
        "copied": {name: name for name in weights if ".layers." not in name},
    }
    (folder / "minedraft_draft.json").write_text(json.dumps(manifest))


@pytest.mark.slow
def test_pip_downloads_what_is_missing_and_an_interrupted_fetch_goes_on(
    register, wheels_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first, second = sorted(wheels_dir.glob("*.whl"))
    index = tmp_path / "index"
    index.mkdir()
    shutil.copy(first, index)
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    with pytest.raises(ModelError, match=r"tiny_part2==1\.0.*pip could not download it .*--wheels DIR"):
        ensure_model(NAME)
    kept = _files(tmp_path / "cache")
    assert [path.name for path in kept] == [first.name]
    (index / first.name).unlink()
    shutil.copy(second, index)
    register(sha256="0" * 64)
    with pytest.raises(ModelError, match=r"joined file has sha256 [0-9a-f]{64}, expected 0000"):
        ensure_model(NAME)
    assert sorted(path.name for path in _files(tmp_path / "cache")) == [first.name, second.name]


def test_a_wheel_that_was_changed_is_not_used(register, wheels_dir: Path, tmp_path: Path):
    changed = Path(shutil.copytree(wheels_dir, tmp_path / "changed"))
    first = min(changed.glob("*.whl"))
    first.write_bytes(first.read_bytes() + b"x")
    with pytest.raises(ModelError, match=r"tiny_part1.*sha256 [0-9a-f]{64}, expected [0-9a-f]{64}; not used"):
        ensure_model(NAME, wheels_dir=changed)
    assert _files(tmp_path / "cache") == []


def test_a_missing_wheel_is_named(register, tmp_path: Path):
    with pytest.raises(ModelError, match=r"wheels is .*tiny_part1-1\.0-py3-none-any\.whl is not in it"):
        ensure_model(NAME, wheels_dir=tmp_path)


def test_a_python_without_pip_says_what_to_do(register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = _write_program(tmp_path / "python", "echo No module named pip >&2; exit 1")
    monkeypatch.setattr("sys.executable", str(program))
    with pytest.raises(ModelError, match=r"this Python has no pip \(.* -m ensurepip\).*--target DIR --draft DIR"):
        ensure_model(NAME)


def test_missing_packages_come_with_the_command_that_adds_them(register, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(minedraft.models.catalogue, "_CONVERT_MODULES", ("json", "no_such_module"))
    with pytest.raises(ConfigError, match=r"converting it needs no_such_module: .* -m pip install no_such_module"):
        ensure_model(NAME)


def test_a_full_disk_is_told_before_anything_is_fetched(register, monkeypatch: pytest.MonkeyPatch, known: KnownModel):
    monkeypatch.setitem(KNOWN_MODELS, NAME, dataclasses.replace(known, folder_bytes=10**18))
    with pytest.raises(ConfigError, match=r"cache is .*1000000000\.0 GB needed, .* GB free; set MINEDRAFT_CACHE"):
        ensure_model(NAME)


@pytest.mark.parametrize("fault", ["locks", "building", "no room"])
def test_a_cache_that_cannot_be_written_is_a_configuration_error(
    register, wheels_dir: Path, tmp_path: Path, fault: str
):
    (tmp_path / "cache").mkdir()
    if fault != "no room":
        (tmp_path / "cache" / fault).write_text("where a folder should be")
    limit = full_disk() if fault == "no room" else nullcontext()
    with limit, pytest.raises(ConfigError, match=r"cache is .*cannot be written \(.+\); set MINEDRAFT_CACHE"):
        ensure_model(NAME, wheels_dir=wheels_dir)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("echo 'KeyError: 7' >&2; exit 1", r"the conversion failed \(KeyError: 7\)"),
        ("kill -9 $$", r"the conversion was killed; it needs 1\.0 GB of memory"),
    ],
)
def test_a_conversion_that_fails_says_why_and_leaves_nothing(
    register, wheels_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, message: str
):
    monkeypatch.setattr("sys.executable", str(_write_program(tmp_path / "python", end)))
    with pytest.raises(ConfigError, match=f"model is 'tiny-two-parts': {message}"):
        ensure_model(NAME, wheels_dir=wheels_dir)
    assert _files(tmp_path / "cache") == []


@pytest.mark.slow
@pytest.mark.parametrize("step", ["download", "conversion"])
def test_a_fetch_that_is_killed_takes_the_program_it_runs_with_it(tmp_path: Path, step: str):
    os.mkfifo(tmp_path / "started")
    (tmp_path / "pip.py").write_text(
        "import os, signal\n"
        f"with open({str(tmp_path / 'started')!r}, 'w') as file: print(os.getpid(), file=file)\n"
        "signal.pause()\n"
    )
    program = (
        "import sys\nfrom pathlib import Path\nfrom minedraft.models.catalogue import _run_child\n"
        "from minedraft.models.sources import PinnedWheel\nfrom minedraft.models.wheels import fetch_wheels\n"
        "if sys.argv[1] == 'conversion': _run_child('m', ['pip'], print, 0)\n"
        "else: fetch_wheels([PinnedWheel('a', 'a', '', 1, 'a')], Path(sys.argv[2]), print)"
    )
    root = Path(minedraft.models.catalogue.__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])}
    with subprocess.Popen(
        [sys.executable, "-c", program, step, str(tmp_path / "store")], env=environment, stdout=subprocess.DEVNULL
    ) as fetch:
        child = os.pidfd_open(int((tmp_path / "started").read_text()))
        fetch.kill()
    is_ended, _, _ = select.select([child], [], [], 2)
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(child, signal.SIGKILL)
    os.close(child)
    assert is_ended


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"smollm2-135m-instruct.*or give a model folder"):
        ensure_model("gpt-5")


def test_the_registry_pins_every_file():
    for model in KNOWN_MODELS.values():
        if isinstance(model.source, GgufSource):
            assert len(model.source.sha256) == 64
            for wheel in model.source.wheels:
                assert len(wheel.sha256) == 64
                assert "==" in wheel.requirement
                assert wheel.num_bytes > 0
