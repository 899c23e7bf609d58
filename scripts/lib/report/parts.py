"""The names of the generated parts."""

from __future__ import annotations

from collections.abc import Mapping

from scripts.lib.faults.table import faults_table
from scripts.lib.report.studies import machines_table, made_line
from scripts.lib.report.tables import studies
from scripts.lib.report.tables.context import context_table
from scripts.lib.report.tables.drafters import drafters_table, student_rates_table, students_table
from scripts.lib.report.tables.exits import exits_table
from scripts.lib.report.tables.forecast import capacity_table, differences_list, paper_table, theory_table
from scripts.lib.report.tables.forward import forward_table
from scripts.lib.report.tables.headline import headline_table
from scripts.lib.report.tables.matrix import matrix_axis_table, matrix_kinds_table
from scripts.lib.report.tables.metrics import definitions_table
from scripts.lib.report.tables.modes import loads_table, modes_table
from scripts.lib.report.tables.peers import decoding_table, formats_table, prompts_table
from scripts.lib.report.tables.settings import settings_table
from scripts.lib.report.tables.vllm import vllm_limits_table, vllm_table
from scripts.lib.report.writing import Part

PARTS: Mapping[str, Part] = {
    "settings": settings_table,
    "exits": exits_table,
    "context": context_table,
    "axis": matrix_axis_table,
    "kinds": matrix_kinds_table,
    "faults": faults_table,
    "modes": modes_table,
    "loads": loads_table,
    "decoding": decoding_table,
    "formats": formats_table,
    "prompts": prompts_table,
    "vllm": vllm_table,
    "vllm_limits": vllm_limits_table,
    "forward": forward_table,
    "drafters": drafters_table,
    "students": students_table,
    "student_rates": student_rates_table,
    "headline": headline_table,
    "machines": machines_table,
    "made": made_line,
    "padding": studies.padding_table,
    "two_hosts": studies.two_hosts_table,
    "useless": studies.useless_table,
    "ways": studies.ways_table,
    "sampled": studies.sampled_table,
    "pearl": studies.pearl_table,
    "channels": studies.channels_table,
    "cores": studies.cores_table,
    "doors": studies.doors_table,
    "guidellm": studies.guidellm_table,
    "observing": studies.observing_table,
    "control": studies.control_table,
    "choosing": studies.choosing_table,
    "products": studies.products_table,
    "theory": theory_table,
    "paper": paper_table,
    "differences": differences_list,
    "capacity": capacity_table,
    "metrics": definitions_table,
    "chaos": studies.chaos_table,
}
