"""The result file of the matrix: what was measured so far, so that a later start goes on with the rest.

The names of the metrics stand once, at its head; a row has its runs as lists of values in that order, and each table
takes one line, so that thousands of runs stay small and a difference can be read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from minedraft.bench.runner import BenchConfig, BenchRow, BenchRun
from minedraft.errors import ConfigError
from minedraft.types import Mode
from scripts.lib.matrix.plan import Setting

TableKey = tuple[str, str, int, int, float]  # pair, kind, m, n, temperature
_NAMES = ("pair", "kind", "size", "samples", "temperature")
_LATER = "repeats"  # an option that may be raised later: the runs that are there count
_DIGITS = 6  # of a number, so that the file stays small


class Store:
    """The rows of each table.

    Attributes:
        done: settings whose rows have all their runs, and how many. used_s: seconds of measuring, over all starts.

    Raises:
        ConfigError: the file exists and is no result of the matrix, or one with other options.
    """

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        self._path = path
        self._options = dict(options)
        self._tables: dict[TableKey, dict[BenchConfig, BenchRow]] = {}
        self._input_lens: dict[TableKey, list[int]] = {}
        self._metrics: list[str] = []
        self.done: dict[Setting, int] = {}
        self.used_s = 0.0
        if path.exists():
            self._load()

    def row(self, setting: Setting, config: BenchConfig) -> BenchRow:
        """Return the row of a configuration; a new one has no runs."""
        table = self._tables.setdefault(_key(setting), {})
        return table.setdefault(config, BenchRow(config))

    def add(self, setting: Setting, config: BenchConfig, run: BenchRun) -> None:
        """Add a run, without vLLM's keys, which say the same; the prompts' lengths are kept once for a table."""
        self._input_lens.setdefault(_key(setting), list(run.vllm.get("input_lens", ())))
        self._metrics += [name for name in run.values if name not in self._metrics]
        self.row(setting, config).runs.append(BenchRun(_rounded(run.values)))

    def rates(self, pair: str) -> dict[int, float]:
        """Return the median tokens per second of a pair's runs, by requests in flight."""
        found: dict[int, list[float]] = {}
        for key, table in self._tables.items():
            for config, row in table.items():
                if key[0] == pair and row.runs:
                    found.setdefault(config.num_in_flight, []).append(row.median("tokens_per_s"))
        return {num: median(rates) for num, rates in found.items()}

    def measured(self) -> Iterator[tuple[TableKey, list[BenchRow]]]:
        """Yield each table that has runs, with its rows that have some."""
        for key, table in self._tables.items():
            if rows := [row for row in table.values() if row.runs]:
                yield key, rows

    def _tables_to_json(self) -> list[dict[str, Any]]:
        return [
            dict(zip(_NAMES, key, strict=True))
            | {"input_lens": self._input_lens.get(key, [])}
            | {"rows": [self._row_to_json(row) for row in rows]}
            for key, rows in self.measured()
        ]

    def _row_to_json(self, row: BenchRow) -> dict[str, Any]:
        config = asdict(row.config) | {"num_in_flight": row.config.num_in_flight, "label": row.config.label}
        return {"config": config, "runs": [[run.values.get(name) for name in self._metrics] for run in row.runs]}

    def write(self, facts: Mapping[str, Any]) -> None:
        """Write the file anew. A reader, also after a crash, finds the old one or the new one."""
        content = {**facts, "options": self._options, "used_s": round(self.used_s, 1)}
        content["done"] = [asdict(setting) | {"runs": runs} for setting, runs in sorted(self.done.items(), key=str)]
        content |= {"metrics": self._metrics, "tables": self._tables_to_json()}
        beside = self._path.with_name(f"{self._path.name}.part")
        beside.write_text(_to_text(content), encoding="utf-8")
        os.replace(beside, self._path)

    def _load(self) -> None:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            options, tables = content["options"], content["tables"]
            for table in tables:
                key: TableKey = tuple(table[name] for name in _NAMES)
                self._input_lens[key] = table["input_lens"]
                rows = [_row(row, content["metrics"]) for row in table["rows"]]
                self._tables[key] = {row.config: row for row in rows}
            self._metrics = content["metrics"]
            self.done = {_setting(one): one["runs"] for one in content["done"]}
            self.used_s = float(content["used_s"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            limit = f"must be a result of scripts/bench/matrix: {type(error).__name__} {error}"
            raise ConfigError("json", str(self._path), limit) from None
        if {**options, _LATER: 0} != {**self._options, _LATER: 0}:
            limit = f"has runs with other options ({options}); name another file, or use the same ones"
            raise ConfigError("json", str(self._path), limit)


def _key(setting: Setting) -> TableKey:
    return setting.pair, setting.kind, setting.size, setting.samples, setting.temperature


def _setting(one: Mapping[str, Any]) -> Setting:
    return Setting(**{name: value for name, value in one.items() if name != "runs"})


def _row(row: Mapping[str, Any], metrics: Sequence[str]) -> BenchRow:
    names = set(asdict(BenchConfig(Mode.AR, 1, 0)))
    fields = {name: value for name, value in row["config"].items() if name in names}
    config = BenchConfig(**(fields | {"mode": Mode(fields["mode"])}))
    return BenchRow(config, [BenchRun(dict(zip(metrics, values, strict=False))) for values in row["runs"]])


def median_of(content: Mapping[str, Any], row: Mapping[str, Any], metric: str) -> float:
    """Return the median of a metric over the runs of a row, both of a result file."""
    place = content["metrics"].index(metric)
    return float(median(values[place] for values in row["runs"]))


def _to_text(content: Mapping[str, Any]) -> str:
    """Return the file: a line for each entry, and in a list of dictionaries for each of these."""
    lines = []
    for name, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            text = "[\n" + ",\n".join([f"  {_dense(one)}" for one in value]) + "\n ]"
        else:
            text = _dense(value)
        lines.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _dense(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _round(value) for name, value in values.items()}


def _round(value: Any) -> Any:  # noqa: ANN401 - a number or a list of them
    if isinstance(value, list):
        return [_round(one) for one in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
