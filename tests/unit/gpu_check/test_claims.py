"""What may be claimed follows from the figures alone, and the table fits a screen."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from scripts.gpu.claims import MAY, NO_GPU, NOT_MET, UNMEASURED, make_claims
from scripts.gpu.main import LIMITS_S
from scripts.gpu.scale import FULL
from scripts.gpu.summary import MAX_LINES, summary_lines

EQUAL = {"ar": 10, "sd": 10, "minedraft": 10, "pearl": 10}


def bench_row(mode: str, m: int, **median: float) -> dict[str, Any]:
    figures = {"tokens_per_s": 900.0, "draft_ms": 3.0, "verify_ms": 7.0, "step_ms": 7.2, "overlap_efficiency": 0.97}
    median = {**figures, "control_overhead_ms": 0.2, **median}
    config = {"mode": mode, "max_batch_size": m, "label": f"{mode} m={m} k=4"}
    return {"config": config, "median": median, "of_sd_m": 1.0, "of_sd_2m": 1.0, "bound": 1.4}


def experiment(sizes: tuple[int, ...]) -> dict[str, Any]:
    modes = ("ar", 2), ("sd", 1), ("sd", 2), ("minedraft", 1)
    rows = [bench_row(mode, factor * m) for m in sizes for mode, factor in modes]
    return {"checked": 10, "equal": EQUAL, "rows": rows}


def model(commands: str) -> dict[str, Any]:
    forwards = [
        {"m": m, "tokens": tokens, "ms": 6.0, "floor_ms": 5.0, "ratio": 1.2}
        for m in FULL.num_sequences
        for tokens in FULL.span_lens
    ]
    rows = [{"m": m, "k": 4, "ms": 5.6, "host_syncs": 1} for m in FULL.command_sizes]
    return {"forwards": forwards, commands: rows, "kernels": "triton", "profile": {"launches": 900}}


@pytest.fixture
def content() -> dict[str, Any]:
    """The report of a check on a GPU on which everything is well."""
    kind = {
        "prompts": 10,
        "generate_equals_cpu": 10,
        "equal": EQUAL,
        "seeded_equal": EQUAL,
        "seeded_prompts": 10,
        "equal_while_killed": 10,
        "equal_after_kill": 10,
    }
    controlled = {"prompts": 10, "equal": EQUAL}
    loop = {"drafts": 48, "equal": 48, "draft_waits": 1, "verify_waits": 1}
    return {
        "steps": {name: {"result": "ok", "seconds": 30.0, "tail": []} for name in ("facts", "exact", "alone", "pair")},
        "facts": {"gpu": "NVIDIA H100", "packages": {}, "copy_gb_per_s": 3000.0, "matmul_tflop_per_s": 700.0},
        "gputests": {"passed": 9, "skipped": 0, "failed": []},
        "law": {
            "choice": {"drafts": 320, "drafts_equal": 320, "verdicts": 320, "verdicts_equal": 320},
            "loop": {law: dict(loop) for law in ("GREEDY", "COUPLED")},
            "graphs": {"kernels": "triton (graphs of up to 640 rows)", "captured": True, "seconds": 2.5},
        },
        "exact": {"llama": kind, "qwen2": kind, "with_cores": controlled, "controlled": controlled},
        "alone": {
            **{name: model("verifies") for name in FULL.targets},
            **{name: model("drafts") for name in FULL.drafters},
            **{f"{name} in transformers": {"forwards": model("")["forwards"][:3]} for name in ("llama-8b", "llama-1b")},
        },
        "pair": {
            "draft_times": "measured alone",
            "B": experiment(FULL.sizes),
            "C": experiment(FULL.sizes),
            "D": experiment(FULL.sizes[:1]),
            "generate": {"m": 32, "tokens_per_s": 250.0},
        },
    }


def verdicts(content: dict[str, Any]) -> dict[str, str]:
    return {claim.text: claim.verdict for claim in make_claims(content)}


def test_if_every_figure_is_good_everything_may_be_claimed(content: dict[str, Any]) -> None:
    assert set(verdicts(content).values()) == {MAY}


def test_without_figures_nothing_is_decided() -> None:
    assert set(verdicts({}).values()) == {NO_GPU}
    assert set(verdicts({"facts": {"gpu": "NVIDIA H100"}}).values()) == {UNMEASURED}


def test_on_a_cpu_nothing_may_be_claimed(content: dict[str, Any]) -> None:
    content["facts"]["gpu"] = None
    assert set(verdicts(content).values()) == {NO_GPU}


def spoil(content: dict[str, Any], path: str, value: object) -> None:
    """Set one entry, whose path may go through lists by number."""
    *way, last = path.split(" ")
    place: Any = content
    for name in way:
        place = place[int(name) if name.isdigit() else name]
    place[int(last) if last.isdigit() else last] = value


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("gputests failed", ["test_x"], "tests/gpu"),
        ("gputests skipped", 1, "tests/gpu"),
        ("gputests passed", 0, "tests/gpu"),
        ("law choice drafts_equal", 319, "law does"),
        ("law choice verdicts_equal", 319, "law does"),
        ("law loop COUPLED equal", 47, "stay on the GPU"),
        ("law loop GREEDY draft_waits", 4, "whatever the law"),
        ("law loop COUPLED verify_waits", 3, "whatever the law"),
        ("law graphs captured", False, "captured at load"),
        ("exact qwen2 equal", {**EQUAL, "sd": 9}, "as generate there"),
        ("exact qwen2 equal", {"ar": 10, "sd": 10}, "as generate there"),
        ("exact llama generate_equals_cpu", 9, "GPU and CPU in float32"),
        ("exact llama seeded_equal", {**EQUAL, "minedraft": 9}, "seeded"),
        ("exact with_cores equal", {**EQUAL, "ar": 0}, "drafter on CPU cores"),
        ("exact llama equal_after_kill", 9, "killed"),
        ("exact llama equal_while_killed", 9, "killed"),
        ("exact controlled equal", {**EQUAL, "ar": 9}, "controlled pair"),
        ("pair C equal", {**EQUAL, "ar": 9}, "controlled pair"),
        ("alone llama-8b forwards 0 ratio", 1.36, "8B verify"),
        ("alone llama-1b drafts 0 ms", 6.5, "draft token of 1B"),
        ("alone llama-1b drafts 0 host_syncs", 4, "waits for the device once"),
        ("pair B rows 3 median overlap_efficiency", 0.94, "simulated second GPU"),
        ("pair C rows 7 median overlap_efficiency", 0.94, "GPU and CPU cores"),
        ("pair B rows 3 median control_overhead_ms", 0.5, "a step at m = 16"),
        ("pair B rows 7 median control_overhead_ms", 2.0, "a step at m = 64"),
        ("pair generate tokens_per_s", 310.0, "times generate"),
        ("pair D equal", {**EQUAL, "ar": 9}, "both models work on one GPU"),
    ],
)
def test_a_figure_beyond_its_bar_takes_its_claim_away(
    content: dict[str, Any], path: str, value: object, text: str
) -> None:
    spoilt = copy.deepcopy(content)
    spoil(spoilt, path, value)
    found = verdicts(spoilt)
    assert [found[name] for name in found if text in name] == [NOT_MET]


def test_a_step_that_was_ended_leaves_its_claims_undecided(content: dict[str, Any]) -> None:
    del content["pair"]["C"]
    del content["alone"]["llama-1b"]
    content["alone"]["llama-8b"] = {"skipped": "no time left"}
    undecided = {text for text, verdict in verdicts(content).items() if verdict == UNMEASURED}
    assert len(undecided) == 4
    assert set(verdicts(content).values()) == {MAY, UNMEASURED}


def test_figures_that_are_half_written_cost_their_own_part_only(content: dict[str, Any]) -> None:
    del content["alone"]["qwen-1.5b"]["forwards"][0]["ratio"]
    del content["pair"]["B"]["rows"][0]["median"]["step_ms"]
    del content["pair"]["C"]["checked"]
    lines = summary_lines(content)
    assert sum("which lacks what this part shows (KeyError" in line for line in lines) == 2
    assert any("llama-8b (triton" in line for line in lines)
    assert [text for text, verdict in verdicts(content).items() if verdict == UNMEASURED] == [
        "the controlled pair answers with its map in every mode"
    ]


def test_the_table_fits_and_shows_each_claim(content: dict[str, Any]) -> None:
    for found in content["steps"].values():
        found |= {"result": "timed out", "tail": ["a long line " * 20]}
    lines = summary_lines(content)
    assert len(lines) <= MAX_LINES
    assert max(map(len, lines)) <= 220
    assert sum(line.startswith(f"  {MAY}") for line in lines) == len(make_claims(content))
    assert any("llama-8b (triton, 900 launches)" in line and "16x5 6.0 (1.20)" in line for line in lines)


def test_the_figures_of_a_whole_check_fit(content: dict[str, Any]) -> None:
    content["steps"] = {name: {"result": "ok", "seconds": 30.0, "tail": []} for name in LIMITS_S}
    lines = summary_lines(content)
    assert not any(line.startswith("...") for line in lines), f"{len(lines)} lines"


def test_the_bounds_follow_from_the_times_alone(content: dict[str, Any]) -> None:
    drafts, verifies = (
        [{"m": m, "k": 4, "ms": ms} for m, ms in times] for times in (((16, 3.0), (32, 4.0)), ((16, 6.0), (32, 9.0)))
    )
    content["alone"]["llama-1b"]["drafts"], content["alone"]["llama-8b"]["verifies"] = drafts, verifies
    # (3 + 6) / 6 at equal m; (4 + 9) / (2 x 6) at equal requests in flight.
    assert any("m=16 1.50 (1.08)  m=32 1.44" in line for line in summary_lines(content))


def test_an_empty_report_has_a_table_too() -> None:
    assert len(summary_lines({})) <= MAX_LINES
