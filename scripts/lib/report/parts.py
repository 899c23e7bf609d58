"""The names of the generated parts."""

from __future__ import annotations

from collections.abc import Mapping

from scripts.lib.faults.table import faults_table
from scripts.lib.report.tables.drafters import drafters_table
from scripts.lib.report.tables.forward import forward_table
from scripts.lib.report.tables.modes import loads_table, modes_table
from scripts.lib.report.tables.peers import decoding_table, prompts_table
from scripts.lib.report.tables.settings import settings_table
from scripts.lib.report.tables.vllm import vllm_table
from scripts.lib.report.writing import Part

PARTS: Mapping[str, Part] = {
    "settings": settings_table,
    "faults": faults_table,
    "modes": modes_table,
    "loads": loads_table,
    "decoding": decoding_table,
    "prompts": prompts_table,
    "vllm": vllm_table,
    "forward": forward_table,
    "drafters": drafters_table,
}
