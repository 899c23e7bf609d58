"""scripts/bench/cores: the cost of giving a loaded model other cores, and its forwards on them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console

from minedraft.bench.report import machine_facts
from minedraft.cli.console import run
from minedraft.device import Device
from minedraft.process.with_parent import child_command, child_environment
from minedraft_workers.execution.options import LoadOptions

BATCHES = (1, 8, 16)
_CONTEXT = 128  # cached tokens per request
_REPEATS = 9  # forwards of each size, of which the median counts


class LoadedModel:
    """A child process with the model loaded on one device. It sleeps between questions."""

    def __init__(self, model: Path, device: str) -> None:
        command = child_command("scripts.lib.studies.cores", str(model), "--device", device, "--child")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environment()
        )

    def ask(self, cores: Sequence[int]) -> dict[str, Any]:
        """Give it these cores. Return "change_ms", "forward_ms" of each of BATCHES, and a "digest" of all logits."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(list(cores)), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.communicate("")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--device", default="cpu:0-1", show_default=True, help="All cores; the model also runs on the last one.")
@click.option("--turns", default=8, show_default=True, type=click.IntRange(1), help="Changes there and back.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None, help="Write the figures here.")
@click.option("--child", is_flag=True, hidden=True)
def main(model: Path, device: str, turns: int, json_path: Path | None, child: bool) -> None:
    """Measure the cost of a change of cores, for the model in the folder MODEL.

    One process loads the model on one core and is given all of them, again and again; another one has loaded it
    on all. They take turns, so that a change in the machine's speed affects both. Times are medians over the turns.

    \b
    Examples:
      scripts/bench/cores ~/.cache/minedraft/models/smollm2-135m-instruct
      scripts/bench/cores MODEL --device cpu:0-3 --json cores.json
    """
    all_cores = Device.parse(device, "--device").here("--device").cores
    if child:
        _serve(model, all_cores)
        return
    one = all_cores[-1:]
    changed, loaded = LoadedModel(model, str(Device("cpu", one))), LoadedModel(model, str(Device("cpu", all_cores)))
    answers: dict[str, list[dict[str, Any]]] = {"one": [], "changed": [], "loaded": []}
    for _ in range(turns + 1):
        answers["one"].append(changed.ask(one))
        answers["changed"].append(changed.ask(all_cores))
        answers["loaded"].append(loaded.ask(all_cores))
    for process in (changed, loaded):
        process.close()
    result = _summarise({name: given[1:] for name, given in answers.items()}, len(all_cores))  # the first warms up
    Console().print_json(json.dumps(result))
    if json_path is not None:
        text = json.dumps({"machine": machine_facts(), "model": model.name, **result}, indent=1)
        json_path.write_text(text + "\n", encoding="utf-8")


def _summarise(answers: dict[str, list[dict[str, Any]]], num_cores: int) -> dict[str, Any]:
    def forward_ms(name: str, index: int) -> float:
        return float(median(answer["forward_ms"][index] for answer in answers[name]))

    return {
        "num_cores": num_cores,
        "turns": len(answers["one"]),
        "take_ms": median(answer["change_ms"] for answer in answers["changed"]),
        "give_back_ms": median(answer["change_ms"] for answer in answers["one"]),
        "forwards": [
            {
                "requests": batch,
                "one_core_ms": forward_ms("one", index),
                "given_all_cores_ms": forward_ms("changed", index),
                "loaded_on_all_cores_ms": forward_ms("loaded", index),
            }
            for index, batch in enumerate(BATCHES)
        ],
        "has_equal_bits": len({answer["digest"] for given in answers.values() for answer in given}) == 1,
    }


def _serve(model: Path, own: Sequence[int]) -> None:
    """Answer each list of cores on stdin with the figures of `LoadedModel.ask`."""
    from minedraft.device import usable_cores
    from minedraft_workers.cores import WorkerCores
    from minedraft_workers.device import pin
    from minedraft_workers.execution.executor import Executor, ForwardSpan

    every = usable_cores()
    device = Device("cpu", tuple(own))
    pin(device)
    executor = Executor.load(model, LoadOptions(device, kernels="native", num_blocks=16 * max(BATCHES)))
    assert executor.pool is not None, "native kernels can change"
    cores = WorkerCores(own, every, executor.pool.resize)
    for n in range(max(BATCHES)):
        tokens = [(n * 31 + 7 * i) % 1000 for i in range(_CONTEXT)]
        executor.forward([ForwardSpan(n + 1, 0, tokens, 0)])
    for line in sys.stdin:
        began_ns = time.perf_counter_ns()
        cores.change(json.loads(line))
        change_ms = (time.perf_counter_ns() - began_ns) / 1e6
        digest, forward_ms = hashlib.sha256(), []
        for batch in BATCHES:
            spans = [ForwardSpan(n + 1, _CONTEXT, [n], 1) for n in range(batch)]
            times_ms = []
            for _ in range(_REPEATS):
                began_ns = time.perf_counter_ns()
                logits = executor.forward(spans)
                times_ms.append((time.perf_counter_ns() - began_ns) / 1e6)
            digest.update(logits.numpy().tobytes())
            forward_ms.append(median(times_ms))
        print(json.dumps({"change_ms": change_ms, "forward_ms": forward_ms, "digest": digest.hexdigest()}), flush=True)


if __name__ == "__main__":
    run(main, "scripts/bench/cores")
