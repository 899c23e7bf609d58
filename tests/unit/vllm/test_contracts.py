"""What the plugin uses of vLLM, looked up in a made-up installation; and settings that go together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from minedraft.cli.plugins.vllm_doctor import vllm_doctor
from minedraft.errors import ConfigErrors
from minedraft.vllm import compatible, contracts
from minedraft.vllm.contracts import CONTRACTS, check_contracts, is_supported, missing, to_markdown

ROOT = Path(__file__).parents[3]


@pytest.fixture
def vllm_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A vLLM that has every name of the contracts and runs no code."""
    for contract in CONTRACTS:
        path = (tmp_path / contract.module.replace(".", "/")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        body = "".join([f"    {name}: int\n" for name in contract.names])
        with path.open("a") as file:
            is_function = contract.owner.islower()
            file.write(f"def {contract.owner}(): ...\n" if is_function else f"class {contract.owner}:\n{body}")
    for folder in (tmp_path / "vllm", *(tmp_path / "vllm").rglob("*/")):
        (folder / "__init__.py").write_text("raise AssertionError('imported')\n")
    # Names of one class are in several contracts.
    for path in (tmp_path / "vllm").rglob("*.py"):
        blocks: dict[str, list[str]] = {}
        for block in path.read_text().split("class ")[1:]:
            name, _, rest = block.partition(":\n")
            blocks.setdefault(name, []).append(rest)
        if blocks:
            path.write_text("".join([f"class {name}:\n{''.join(parts)}" for name, parts in blocks.items()]))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(contracts, "installed_version", lambda: "0.32.0")
    monkeypatch.setattr("minedraft.cli.plugins.vllm_doctor.installed_version", lambda: "0.32.0")
    monkeypatch.setattr(compatible, "installed_version", lambda: "0.32.0")
    return tmp_path / "vllm"


def test_the_list_of_contracts_is_the_table():
    assert (ROOT / "docs/CONTRACTS.md").read_text() == to_markdown()


def test_every_name_is_found_without_importing_vllm(vllm_folder: Path):
    assert [finding.dotted for finding in check_contracts() if not finding.is_present] == []


def test_a_field_that_is_gone_is_named_and_stops_the_path_that_needs_it(vllm_folder: Path):
    path = vllm_folder / "v1/core/sched/async_scheduler.py"
    path.write_text(path.read_text().replace("_update_after_schedule", "after"))
    findings = check_contracts()
    assert missing(findings, "V1") == []
    assert missing(findings, "V2") == ["vllm.v1.core.sched.async_scheduler.AsyncScheduler._update_after_schedule"]
    with pytest.raises(ConfigErrors, match=r"AsyncScheduler._update_after_schedule"):
        compatible.assert_compatible(_config(), "V2")
    result = CliRunner().invoke(vllm_doctor, ["--json"])
    report = json.loads(result.output)
    assert (result.exit_code, report["works"]) == (0, {"V1": True, "V2": False})
    assert {"module": "vllm.config", "class": "VllmConfig", "name": "additional_config", "present": True} in report[
        "uses"
    ]


def test_the_doctor_says_what_is_known_not_to_work_and_what_to_do(vllm_folder: Path):
    told = json.loads(CliRunner().invoke(vllm_doctor, ["--json"]).output)["known_limits"]
    assert {"where", "what", "instead"} == set.intersection(*(set(each) for each in told))
    shown = CliRunner().invoke(vllm_doctor).output
    assert all(each["what"] in shown and each["instead"] in shown for each in told)
    assert "ray_device_key" in shown


def test_the_doctor_refuses_a_version_out_of_range(vllm_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("minedraft.cli.plugins.vllm_doctor.installed_version", lambda: "0.40.1")
    result = CliRunner().invoke(vllm_doctor)
    assert result.exit_code == 1
    assert "vLLM 0.40.1 is not in the range >=0.32,<0.34" in result.output


@pytest.mark.parametrize(
    ("found", "expected"),
    [("0.32.0", True), ("0.33.1+cpu", True), ("0.31.9", False), ("0.34.0", False), ("dev", False)],
)
def test_versions(found: str, expected: bool):
    assert is_supported(found) is expected


def _config(**changes: Any) -> SimpleNamespace:
    """A configuration that the path for the model runner V1 takes."""
    fields: dict[str, Any] = {
        "method": "custom_class",
        "model": compatible.PROPOSER,
        "pipeline_parallel_size": 1,
        "worker_cls": "auto",
        "runner_type": "generate",
        "enable_prompt_embeds": False,
        "async_scheduling": False,
        "use_v2_model_runner": False,
        "num_speculative_tokens_per_batch_size": None,
    } | changes
    config = SimpleNamespace(**fields)
    return SimpleNamespace(
        speculative_config=config,
        parallel_config=config,
        model_config=config,
        scheduler_config=config,
        use_v2_model_runner=config.use_v2_model_runner,
    )


def test_settings_that_go_together_are_taken(vllm_folder: Path):
    compatible.assert_compatible(_config(), "V1")
    v2 = {"method": "ngram_gpu", "worker_cls": compatible.WORKER, "async_scheduling": True, "use_v2_model_runner": True}
    compatible.assert_compatible(_config(**v2), "V2")


@pytest.mark.parametrize(
    ("path", "changes", "message"),
    [
        (
            "V1",
            {"use_v2_model_runner": True},
            "scheduler_cls .*: vLLM runs model runner V2: use .*MineDraftAsyncScheduler",
        ),
        ("V2", {}, "scheduler_cls .*: vLLM runs model runner V1: use .*scheduler.MineDraftScheduler"),
        ("V2", {"use_v2_model_runner": True}, "worker_cls is 'auto': scheduler and worker go together: use .*Worker"),
        ("V2", {"use_v2_model_runner": True}, "async_scheduling is False: must be on"),
        ("V1", {"method": "ngram"}, "speculative_config.method is 'ngram': must be custom_class"),
        ("V1", {"model": "other.Proposer"}, "speculative_config.model is 'other.Proposer': must be minedraft"),
        ("V1", {"pipeline_parallel_size": 2}, "pipeline_parallel_size is 2: with the plugin it must be 1"),
        ("V1", {"runner_type": "pooling"}, "runner is 'pooling'"),
        ("V1", {"enable_prompt_embeds": True}, "enable_prompt_embeds is True"),
        ("V1", {"num_speculative_tokens_per_batch_size": [1]}, "num_speculative_tokens_per_batch_size is "),
    ],
)
def test_settings_that_do_not_go_together_are_named(
    vllm_folder: Path, path: str, changes: dict[str, Any], message: str
):
    with pytest.raises(ConfigErrors, match=message):
        compatible.assert_compatible(_config(**changes), path)


def test_without_speculation_the_plugin_says_what_to_set(vllm_folder: Path):
    config = _config()
    config.speculative_config = None
    with pytest.raises(ConfigErrors, match=r"speculative_config.method: must be custom_class"):
        compatible.assert_compatible(config, "V1")


def test_the_package_and_the_entry_point_need_no_vllm_and_no_torch():
    code = (
        "import sys, minedraft, minedraft.vllm.compatible as plugin; plugin.register(); plugin.register();"
        "sys.exit(bool({'vllm', 'torch', 'grpc', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
