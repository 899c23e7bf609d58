"""The result file of the matrix: what was measured so far, so that a later start goes on with the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
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
_DIGITS = 6  # of a number, so that the file stays small


class Store:
    """The rows of each table.

    Attributes:
        done: settings whose rows have all their runs. used_s: seconds of measuring, over all starts.

    Raises:
        ConfigError: the file exists and is no result of the matrix, or one with other options.
    """

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        self._path = path
        self._options = dict(options)
        self._tables: dict[TableKey, dict[BenchConfig, BenchRow]] = {}
        self._input_lens: dict[TableKey, list[int]] = {}
        self.done: set[Setting] = set()
        self.used_s = 0.0
        if path.exists():
            self._load()

    def row(self, setting: Setting, config: BenchConfig) -> BenchRow:
        """Return the row of a configuration; a new one has no runs."""
        table = self._tables.setdefault(_key(setting), {})
        return table.setdefault(config, BenchRow(config))

    def add(self, setting: Setting, config: BenchConfig, run: BenchRun) -> None:
        """Add a run, without the lists of vLLM's keys; the prompts' lengths are kept once for a table."""
        self._input_lens.setdefault(_key(setting), list(run.vllm.get("input_lens", ())))
        numbers = {name: value for name, value in run.vllm.items() if isinstance(value, int | float)}
        self.row(setting, config).runs.append(BenchRun(_rounded(run.values), _rounded(numbers)))

    def rates(self, pair: str) -> dict[int, float]:
        """Return the median tokens per second of a pair's runs, by requests in flight."""
        found: dict[int, list[float]] = {}
        for key, table in self._tables.items():
            for config, row in table.items():
                if key[0] == pair and row.runs:
                    found.setdefault(config.num_in_flight, []).append(row.median("tokens_per_s"))
        return {num: median(rates) for num, rates in found.items()}

    def tables(self) -> list[dict[str, Any]]:
        """Return each table as JSON, rows without runs left out."""
        tables = [
            dict(zip(_NAMES, key, strict=True))
            | {"input_lens": self._input_lens.get(key, [])}
            | {"rows": [row.to_json() for row in table.values() if row.runs]}
            for key, table in self._tables.items()
        ]
        return [table for table in tables if table["rows"]]

    def write(self, facts: Mapping[str, Any]) -> None:
        """Write the file anew. A reader, also after a crash, finds the old one or the new one."""
        content = {**facts, "options": self._options, "used_s": round(self.used_s, 1)}
        content |= {"done": [asdict(setting) for setting in sorted(self.done, key=str)], "tables": self.tables()}
        beside = self._path.with_name(f"{self._path.name}.part")
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, self._path)

    def _load(self) -> None:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            options, tables = content["options"], content["tables"]
            for table in tables:
                key: TableKey = tuple(table[name] for name in _NAMES)
                self._input_lens[key] = table["input_lens"]
                rows = [_row(row) for row in table["rows"]]
                self._tables[key] = {row.config: row for row in rows}
            self.done = {Setting(**setting) for setting in content["done"]}
            self.used_s = float(content["used_s"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            limit = f"must be a result of scripts/bench/matrix: {type(error).__name__} {error}"
            raise ConfigError("json", str(self._path), limit) from None
        if options != self._options:
            limit = f"has runs with other options ({options}); name another file, or use the same ones"
            raise ConfigError("json", str(self._path), limit)


def _key(setting: Setting) -> TableKey:
    return setting.pair, setting.kind, setting.size, setting.samples, setting.temperature


def _row(row: Mapping[str, Any]) -> BenchRow:
    names = set(asdict(BenchConfig(Mode.AR, 1, 0)))
    fields = {name: value for name, value in row["config"].items() if name in names}
    config = BenchConfig(**(fields | {"mode": Mode(fields["mode"])}))
    runs = [
        BenchRun(run["minedraft"], {name: value for name, value in run.items() if name != "minedraft"})
        for run in row["runs"]
    ]
    return BenchRow(config, runs)


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _round(value) for name, value in values.items()}


def _round(value: Any) -> Any:  # noqa: ANN401 - a number or a list of them
    if isinstance(value, list):
        return [_round(one) for one in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
