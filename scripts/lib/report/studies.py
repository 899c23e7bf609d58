"""Every study that is committed: its file and the command that made it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scripts.lib.report.markdown import to_table
from scripts.lib.report.results import Json, Results

_BENCH = "scripts/bench"
COMMANDS = {
    "peers/smollm2.json": f"{_BENCH}/peers --repeats 2",
    "peers/qwen.json": f"{_BENCH}/peers --engines ours,llama.cpp --model DIR --cores 0 --in-flight 1,2,4,8"
    " --kinds fixed --quick",
    "peers/zen4.json": f"{_BENCH}/peers --engines ours,llama.cpp,vllm --cores 0 --in-flight 1,2,4,8,16,32"
    " --kinds fixed,first --quick --repeats 2",
    "peers/amx.json": f"{_BENCH}/peers --engines ours,llama.cpp,vllm --cores 0 --in-flight 1,2,4,8,16,32"
    " --kinds fixed,first --quick",
    "peers/amx_cores.json": f"{_BENCH}/peers --engines ours --cores 0 --cores 0-1 --in-flight 1,2,4,8 --kinds fixed"
    " --quick --repeats 2",
    "peers/qwen_amx.json": f"{_BENCH}/peers --engines ours,llama.cpp --model DIR --cores 0 --in-flight 1,2,4,8"
    " --kinds fixed --quick",
    "peers/avx2.json": f"{_BENCH}/peers --engines ours,llama.cpp,vllm --instructions avx2 --dtype bfloat16,float32"
    " --cores 0 --in-flight 1,2,4,8 --kinds fixed --quick --repeats 2",
    "smollm2.json": "minedraft bench -m 2,4,8 -k 2 --max-new-tokens 40 --json smollm2.json",
    "studies/head.json": "minedraft bench -m 1,2,4,8 -k 2 --max-new-tokens 40 --json head.json",
    "qwen.json": "minedraft bench -m 1,2,4 -k 3 --max-new-tokens 32 --json qwen.json",
    "k4.json": "minedraft bench -m 8 -k 4 --max-new-tokens 40 --repeats 3 --json k4.json",
    "quickstart.json": "scripts/quickstart --json quickstart.json",
    "overlap.json": f"{_BENCH}/overlap --target DIR --draft DIR --out overlap",
    "modes/smollm2.json": f"{_BENCH}/modes -k 2 --waves 2",
    "modes/qwen.json": f"{_BENCH}/modes --pair qwen --in-flight 1,2,4,8 -k 2 --max-new-tokens 32",
    "modes/qwen_auto.json": f"{_BENCH}/modes --pair qwen --modes ar,sd --in-flight 1,2,4,8 -k 2 --repeats 5 --waves 2"
    " --max-new-tokens 24",
    "modes/qwen_amx.json": f"{_BENCH}/modes --pair qwen --in-flight 1,2,4,8 -k 2 --repeats 2",
    "studies/useless.json": f"{_BENCH}/studies/useless --json useless.json",
    "studies/sampled.json": f"{_BENCH}/sampled --json sampled.json",
    "studies/lookup.json": f"{_BENCH}/drafts --vary lookup --by-kind -m 4 --json lookup.json",
    "studies/tetris.json": f"{_BENCH}/drafts --vary policy --json tetris.json",
    "drafting/draft_len.json": f"{_BENCH}/drafts --vary draft-len --by-kind -m 4 --temperatures 0 --max-new-tokens 48"
    " --json draft_len.json",
    "studies/pearl.json": f"{_BENCH}/pearl --target DIR --draft DIR --in-flight 1 --json pearl.json",
    "studies/context.json": f"{_BENCH}/studies/context -m 2 --repeats 3 --json context.json"
    "` and `--pair qwen -m 1 -k 3",
    "matrix/pairs.json": f"{_BENCH}/matrix --minutes 9 --json pairs.json",
    "matrix/axes.json": f"{_BENCH}/matrix --minutes 8 --pairs smollm2,smollm2-head --json axes.json",
    "matrix/qwen.json": f"{_BENCH}/matrix --minutes 45 --pairs qwen --kinds chat,code --json qwen.json",
    "matrix/samples.json": f"{_BENCH}/matrix --minutes 6 --pairs smollm2,smollm2-head -k 2 -m 4 --temperatures 0.8"
    " --repeats 2 --json samples.json",
    "channels.json": f"{_BENCH}/channels --json channels.json",
    "studies/cores.json": f"{_BENCH}/cores MODEL --json cores.json",
    "studies/http.json": f"{_BENCH}/doors/http --repeats 9 --json http.json",
    "doors/guidellm.json": f"{_BENCH}/doors/guidellm --json guidellm.json",
    "vllm/smollm2.json": "scripts/vllm",
    "vllm/long.json": "scripts/vllm --ways serial,alternating --in-flight 8,16 --max-new-tokens 192",
    "vllm/qwen.json": "scripts/vllm --pair qwen --in-flight 4,16 --repeats 2 --max-new-tokens 32",
    "studies/two_hosts.json": f"{_BENCH}/network/two_hosts --pairs timed --json two_hosts.json",
    "studies/two_hosts_real.json": f"{_BENCH}/network/two_hosts --pairs real --tokens 24 --json two_hosts_real.json",
    "studies/padding.json": f"{_BENCH}/network/padding --json padding.json",
    "studies/overload.json": f"{_BENCH}/doors/overload --json overload.json",
    "studies/observing.json": f"{_BENCH}/observing --json observing.json",
    "observing/cpu.json": f"{_BENCH}/observing --no-real --steps 60 --repeats 40 --json cpu.json",
    "forward.json": f"{_BENCH}/forward MODEL --json forward.json",
    "forward_zen4.json": f"{_BENCH}/forward MODEL --device cpu:1 --no-generate --json forward_zen4.json"
    "` and `--device cpu:0-1",
    "forward_amx.json": f"{_BENCH}/forward MODEL --device cpu:1 --no-generate --json forward_amx.json",
    "kernels.json": f"{_BENCH}/kernels --json kernels.json",
    "sampling.json": f"{_BENCH}/sampling --json sampling.json",
    "control.json": f"{_BENCH}/control --json control.json",
    "ar_control.json": "minedraft bench -m 2,4,8 --repeats 3 --max-new-tokens 64 --json ar_control.json",
    "ar.json": f"{_BENCH}/ar --target DIR --json ar.json",
    "faults/matrix.json": "pytest tests/faults --junitxml FILE; python -m scripts.lib.faults.table --take FILE",
    "faults/chaos.json": "scripts/chaos --minutes 30 --json chaos.json",
    "forecast/theory.json": "scripts/forecast/theory",
    "forecast/paper.json": "scripts/forecast/paper",
    "forecast/capacity.json": "scripts/forecast/capacity",
    "drafting/pearl.json": f"{_BENCH}/pearl --target DIR --draft DIR --in-flight 1 --draft-lens 1 --json pearl.json",
    "scripts/drafter/results/model.json": "scripts/train_drafter --target DIR --kind model",
    "scripts/drafter/results/students.json": "scripts/train_drafter compare --target DIR --kind model"
    " --train-tokens 500000",
    "drafting/qwen.json": "scripts/train_drafter --target DIR --prompts FILE --tokens 3000 --minutes 2 --threads 1",
    "drafting/students.json": f"{_BENCH}/studies/sizes --target DIR --drafter '4 layers' DIR ..."
    " --head head DIR --json students.json",
    "scripts/drafter/results/head.json": "scripts/train_drafter --target DIR --kind head",
}  # fmt: skip
"""Result file -> the command line whose figures it has; the name behind --json stands for the file's own path."""


def made_line(results: Results, file: str) -> str:
    """Return where a study's figures are, the command that makes them, and the machine that it ran on."""
    path = results.path(file)
    machine = _machine(results.load(file))
    where = f", {_machine_line(machine)}" if machine else ""
    return f"Made by `{COMMANDS[file]}`; figures in [`{file}`](../{path}){where}."


def machines_table(results: Results) -> str:
    """Return the machines and libraries of all studies, and how many studies have each of them."""
    counts: dict[tuple[str, str], int] = {}
    for file in COMMANDS:
        if machine := _machine(results.load(file)):
            versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
            key = (_machine_line(machine), versions or "not recorded")
            counts[key] = counts.get(key, 0) + 1
    lines = [[machine, versions, str(count)] for (machine, versions), count in counts.items()]
    return to_table(["machine", "libraries", "studies"], lines, text=(0, 1))


def _machine(content: Json) -> Mapping[str, Any]:
    parts: Iterator[Json] = iter(content if isinstance(content, list) else [content])
    return next((part["machine"] for part in parts if "machine" in part), {})


def _machine_line(machine: Mapping[str, Any]) -> str:
    best = machine["instructions"][-1] if machine["instructions"] else "no vector instructions"
    gpus = "".join(f", {gpu['name']}" for gpu in machine.get("gpus", ()))
    return f"{machine['cores']} cores of an {machine['cpu']} with {best}{gpus}"
