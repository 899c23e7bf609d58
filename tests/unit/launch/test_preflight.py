import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from minedraft.errors import ConfigError, ConfigErrors
from minedraft.launch.preflight import check_machine, settle_draft_method
from minedraft.settings.loading import load_settings
from tests.support.full_disk import full_disk
from tests.support.tiny_heads import make_tiny_head
from tests.support.tiny_models import make_tiny_model, write_tiny_tokenizer


def write_folder(folder: Path, **config: object) -> Path:
    """A model folder as far as it is looked at without torch."""
    write_tiny_tokenizer(folder)
    known = {"model_type": "llama", "vocab_size": 320, "max_position_embeddings": 512, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(known | config))
    save_file({"a": np.zeros((320, 4), np.float16)}, folder / "model.safetensors")
    return folder


def problems(**flags: object) -> dict[str, str]:
    with pytest.raises(ConfigErrors) as caught:
        check_machine(load_settings(flags))
    return {error.field: str(error) for error in caught.value.errors}


def test_what_the_draft_folder_holds_is_the_draft_method_that_was_not_given(tmp_path):
    target = make_tiny_model(tmp_path / "t")
    head = make_tiny_head(tmp_path / "h", target)
    for draft, method in ((head, "eagle"), (target, "model"), (None, "model")):
        flags = {"target": target, "draft": draft} if draft else {}
        settings = settle_draft_method(load_settings(flags))
        assert settings.draft_method == method
        assert settle_draft_method(settings) == settings
    for method in ("ngram", "model", "eagle"):  # a given one stays, even where it is wrong
        given = load_settings({"target": target, "draft_method": method, "draft": None if method == "ngram" else head})
        assert settle_draft_method(given) == given
    listen = f"unix:{tmp_path / 'm.sock'}"
    check_machine(settle_draft_method(load_settings({"target": target, "draft": head, "listen": listen})))
    found = problems(target=target, draft=head, draft_method="model", listen=listen)
    assert "holds no model, but an EAGLE-3 head: draft_method eagle takes it as draft" in found["draft"]
    found = problems(target=target, draft=target, draft_method="eagle", listen=listen)
    assert "holds no drafting head" in found["draft"]
    found = problems(target=head, draft=head, draft_method="eagle", listen=listen)
    assert list(found) == ["target"]


def test_a_head_cannot_run_ahead_as_pearl_does(tmp_path):
    target = make_tiny_model(tmp_path / "t")
    head = make_tiny_head(tmp_path / "h", target)
    with pytest.raises(ConfigError, match="mode is 'pearl': a head reads what the target has verified"):
        settle_draft_method(load_settings({"target": target, "draft": head, "mode": "pearl"}))
    for draft, mode in ((head, "minedraft"), (target, "pearl")):
        settle_draft_method(load_settings({"target": target, "draft": draft, "mode": mode}))


def test_all_that_is_wrong_with_a_machine_is_told_at_once(tmp_path):
    found = problems(
        target=tmp_path / "a", draft=tmp_path / "b", target_device="cpu:4000", listen=f"unix:{tmp_path / 'file' / 'm'}"
    )
    assert list(found) == ["target", "draft", "target_device"]
    assert "no such folder" in found["target"]


def test_a_context_that_no_worker_would_serve_is_refused(tmp_path):
    rope = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 128}
    folder = write_folder(tmp_path / "t", rope_parameters=rope)
    found = problems(target=folder, mode="ar", max_model_len=256, listen=f"unix:{tmp_path / 'm.sock'}")
    assert found == {"max_model_len": "max_model_len is 256: the target's context has 128 tokens"}


def test_weights_that_could_run_code_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 9, "max_position_embeddings": 64}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    found = problems(target=tmp_path, draft_method="ngram", listen=f"unix:{tmp_path / 'm.sock'}")
    assert "safetensors" in found["target"]


@pytest.mark.parametrize(
    ("name", "content", "field"),
    [
        ("chat_template.jinja", b"\xff\xfe", "chat_template"),
        ("chat_template.jinja", b"{% if %}", "chat_template"),
        ("tokenizer.json", b"{}", "tokenizer"),
        ("tokenizer_config.json", b"{", "tokenizer"),
        ("generation_config.json", b'{"eos_token_id": [2, 400]}', "target"),
    ],
)
def test_what_belongs_to_the_text_of_the_target_is_checked_too(tmp_path, name, content, field):
    folder = write_folder(tmp_path / "model")
    check_machine(load_settings({"target": folder, "draft_method": "ngram", "listen": f"unix:{tmp_path / 'm.sock'}"}))
    (folder / name).write_bytes(content)
    found = problems(target=folder, draft_method="ngram", listen=f"unix:{tmp_path / 'm.sock'}")
    assert list(found) == [field]
    assert str(folder / name) in found[field]


def test_devices_that_are_not_there_are_refused(tmp_path):
    found = problems(target_device="cpu:4001", draft_device="cpu:0-4000", listen=f"unix:{tmp_path / 'm.sock'}")
    assert "is not available; this process may use" in found["target_device"]
    assert "is not available; this process may use" in found["draft_device"]


@pytest.mark.parametrize("field", ["http", "metrics"])
def test_a_port_of_another_door_that_is_in_use_is_told_before_anything_loads(tmp_path, field):
    target = write_folder(tmp_path / "t")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = f"127.0.0.1:{holder.getsockname()[1]}"
        found = problems(target=target, draft=target, listen=f"unix:{tmp_path / 'm.sock'}", **{field: taken})
    assert found == {field: f"{field} is {taken!r}: process {os.getpid()} is listening there"}


def test_a_trace_that_cannot_be_written_is_told(tmp_path):
    target = write_folder(tmp_path / "t")
    flags = {"target": target, "draft": target, "listen": f"unix:{tmp_path / 'm.sock'}"}
    assert list(problems(**flags, trace=tmp_path / "no" / "run.json")) == ["trace"]


def test_a_working_folder_that_was_removed_is_told(tmp_path, monkeypatch):
    target = write_folder(tmp_path / "t")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    found = problems(target=target, draft=target, listen=f"unix:{tmp_path / 'm.sock'}")
    assert list(found) == ["PWD"]
    assert "No such file or directory; start in another one" in found["PWD"]


def test_a_check_leaves_no_folder_for_the_socket(tmp_path):
    target = write_folder(tmp_path / "t")
    check_machine(load_settings({"target": target, "draft": target, "listen": f"unix:{tmp_path / 'new' / 'm.sock'}"}))
    assert not (tmp_path / "new").exists()


def test_a_default_pair_that_cannot_be_fetched_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINEDRAFT_CACHE", str(tmp_path / "file" / "cache"))
    assert "not a folder" in problems(listen=f"unix:{tmp_path / 'm.sock'}")["cache"]


def test_a_runtime_folder_without_room_is_told_and_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with full_disk():
        found = problems(target=tmp_path / "t", mode="ar")
    assert "cannot be used: File too large" in found["listen"]
    assert "cannot hold sockets" in found["XDG_RUNTIME_DIR"]
    assert list(tmp_path.iterdir()) == []


def test_a_worker_elsewhere_has_its_own_devices(tmp_path, monkeypatch):
    monkeypatch.setenv("MINEDRAFT_CACHE", str(tmp_path))
    core = min(os.sched_getaffinity(0))
    settings = load_settings(
        {
            "target_address": "unix:/a",
            "draft_address": "unix:/b",
            "target_device": "cuda:0",
            "draft_device": f"cpu:{core}",
            "listen": f"unix:{tmp_path / 'm.sock'}",
        }
    )
    check_machine(settings)


def test_the_limit_of_open_files_is_raised_to_what_the_clients_need_or_refused(tmp_path, monkeypatch):
    asked: list[tuple[int, int]] = []
    target = write_folder(tmp_path / "t")
    flags = {"target": target, "draft": target, "max_waiting": 1000, "max_batch_size": 4}
    flags["listen"] = f"unix:{tmp_path / 'm.sock'}"
    monkeypatch.setattr("resource.setrlimit", lambda _, limits: asked.append(limits))
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
    check_machine(load_settings(flags))
    assert asked == [(1000 + 8 + 128, 4096)]
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 1024))
    limit = "that many clients need 1136 open files, and the limit is 1024 (ulimit -Hn)"
    assert problems(**flags) == {"max_waiting": f"max_waiting is 1000: {limit}"}
