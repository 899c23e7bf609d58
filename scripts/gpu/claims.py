"""What may be said after a check, decided from its figures alone. Standard library only, and pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scripts.gpu.scale import MAIN_DRAFT, MAIN_TARGET

MAX_OF_FLOOR = 1.35  # an 8B verify at m = 16
MAX_TOKEN_MS = 1.6  # a draft token of the 1B model at m = 16
MAX_SYNCS = 1  # of a draft of k = 4
MIN_OVERLAP = 0.95
MAX_CONTROL_MS = {16: 0.5, 64: 2.0}
MIN_OF_GENERATE = 3.0
MODES = ("ar", "sd", "minedraft", "pearl")
_M, _K = 16, 4

MAY, NOT_MET, UNMEASURED, NO_GPU = "may be claimed", "not met", "not measured", "not on a GPU"


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence, whether it may be said (MAY, NOT_MET, UNMEASURED or NO_GPU), and the figures that decide."""

    text: str
    verdict: str
    evidence: str


class _Missing(Exception):
    """A figure is not in the report."""


@dataclass(frozen=True, slots=True)
class _Found:
    holds: bool
    evidence: str


def make_claims(content: Mapping[str, Any]) -> list[Claim]:
    """Return all claims for the content of a check's report; figures that are missing decide nothing."""
    is_gpu = content.get("facts", {}).get("gpu") is not None
    claims = []
    for text, judge in _CLAIMS:
        try:
            found = judge(content)
        except (_Missing, LookupError, TypeError, ValueError) as error:  # a step was ended in the middle
            claims.append(Claim(text, UNMEASURED if is_gpu else NO_GPU, f"no {error}"))
            continue
        verdict = NO_GPU if not is_gpu else MAY if found.holds else NOT_MET
        claims.append(Claim(text, verdict, found.evidence))
    return claims


def _get(content: Mapping[str, Any], *path: str) -> Any:  # noqa: ANN401 - JSON
    """Return the entry at a path. Raise _Missing if there is none, or if it is null."""
    found: Any = content
    for name in path:
        if not isinstance(found, Mapping) or found.get(name) is None:
            raise _Missing(" ".join(path))
        found = found[name]
    return found


def _row(rows: list[dict[str, Any]], what: str, **values: object) -> dict[str, Any]:
    for row in rows:
        if all(row.get(name) == value for name, value in values.items()):
            return row
    raise _Missing(f"{what} with {values}")


def _gpu_tests(content: Mapping[str, Any]) -> _Found:
    tests = _get(content, "gputests")
    passed, skipped, failed = (_get(tests, name) for name in ("passed", "skipped", "failed"))
    return _Found(bool(passed) and not skipped and not failed, f"{passed} passed, {skipped} skipped, failed: {failed}")


def _law(content: Mapping[str, Any]) -> _Found:
    found = _get(content, "law", "choice")
    counts = [(_get(found, f"{name}_equal"), _get(found, name)) for name in ("drafts", "verdicts")]
    return _joined([_Found(equal == num, f"{equal} of {num}") for equal, num in counts])


def _loop(content: Mapping[str, Any]) -> _Found:
    founds = _get(content, "law", "loop").items()
    counts = [(law, _get(found, "equal"), _get(found, "drafts")) for law, found in founds]
    return _joined([_Found(equal == num, f"{law} {equal} of {num}") for law, equal, num in counts])


def _waits(content: Mapping[str, Any]) -> _Found:
    founds = []
    for law, found in _get(content, "law", "loop").items():
        draft, verify = (_get(found, f"{name}_waits") for name in ("draft", "verify"))
        founds.append(_Found(max(draft, verify) <= MAX_SYNCS, f"{law} {draft} and {verify}"))
    return _joined(founds)


def _captured(content: Mapping[str, Any]) -> _Found:
    found = _get(content, "law", "graphs")
    is_whole, seconds = (_get(found, name) for name in ("captured", "seconds"))
    return _Found(is_whole, f"{found['kernels']}, in {seconds} s")


def _equal(found: Mapping[str, Any], num: int) -> _Found:
    """Judge answers that are equal, by mode."""
    equal = _get(found, "equal")
    if all(equal.get(mode) == num for mode in MODES):
        return _Found(True, f"{num} of {num}")
    return _Found(False, ", ".join(f"{mode} {equal.get(mode, 0)} of {num}" for mode in MODES))


def _joined(founds: list[_Found]) -> _Found:
    if not founds:
        raise _Missing("answers compared")
    return _Found(all(found.holds for found in founds), "; ".join(found.evidence for found in founds))


def _kinds(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: found for name, found in _get(content, "exact").items() if "generate_equals_cpu" in found}


def _equals_generate(content: Mapping[str, Any]) -> _Found:
    return _joined([_equal(found, found["prompts"]) for found in _kinds(content).values()])


def _generate_equals_cpu(content: Mapping[str, Any]) -> _Found:
    found = [(f["generate_equals_cpu"], f["prompts"]) for f in _kinds(content).values()]
    return _joined([_Found(equal == num, f"{equal} of {num}") for equal, num in found])


def _seeded(content: Mapping[str, Any]) -> _Found:
    founds = [
        _equal({"equal": _get(found, "seeded_equal")}, _get(found, "seeded_prompts"))
        for found in _kinds(content).values()
    ]
    return _joined(founds)


def _with_cores(content: Mapping[str, Any]) -> _Found:
    found = _get(content, "exact", "with_cores")
    return _equal(found, _get(found, "prompts"))


def _killed(content: Mapping[str, Any]) -> _Found:
    founds = []
    for found in _kinds(content).values():
        during, after = _get(found, "equal_while_killed"), _get(found, "equal_after_kill")
        founds.append(_Found(during == after == found["prompts"], f"{during} and {after} of {found['prompts']}"))
    return _joined(founds)


def _controlled(content: Mapping[str, Any]) -> _Found:
    small = _get(content, "exact", "controlled")
    founds = [_equal(small, _get(small, "prompts"))]
    pairs = _get(content, "pair")
    founds += [_equal(pairs[name], pairs[name]["checked"]) for name in ("B", "C", "D") if name in pairs]
    return _joined(founds)


def _verify_floor(content: Mapping[str, Any]) -> _Found:
    rows = _get(content, "alone", MAIN_TARGET, "forwards")
    row = _row(rows, "forward", m=_M, tokens=_K + 1)
    return _Found(
        row["ratio"] <= MAX_OF_FLOOR, f"{row['ms']:.2f} ms, {row['ratio']:.2f} times {row['floor_ms']:.2f} ms"
    )


def _draft_row(content: Mapping[str, Any]) -> dict[str, Any]:
    return _row(_get(content, "alone", MAIN_DRAFT, "drafts"), "draft", m=_M, k=_K)


def _draft_token(content: Mapping[str, Any]) -> _Found:
    token_ms = _draft_row(content)["ms"] / _K
    return _Found(token_ms <= MAX_TOKEN_MS, f"{token_ms:.2f} ms a token")


def _host_syncs(content: Mapping[str, Any]) -> _Found:
    syncs = _draft_row(content).get("host_syncs")
    if syncs is None:
        raise _Missing("count of host waits")
    return _Found(syncs <= MAX_SYNCS, f"{syncs} in a draft of k = {_K}")


def _medians(content: Mapping[str, Any], experiment: str, mode: str) -> dict[int, dict[str, float]]:
    """Return a mode's medians by requests per batch."""
    rows = _get(content, "pair", experiment, "rows")
    found = {row["config"]["max_batch_size"]: row["median"] for row in rows if row["config"]["mode"] == mode}
    if not found:
        raise _Missing(f"{mode} of experiment {experiment}")
    return found


def _overlap(experiment: str) -> Callable[[Mapping[str, Any]], _Found]:
    def judge(content: Mapping[str, Any]) -> _Found:
        by_m = {m: row["overlap_efficiency"] for m, row in _medians(content, experiment, "minedraft").items()}
        evidence = ", ".join(f"{value:.2f} at m = {m}" for m, value in by_m.items())
        return _Found(min(by_m.values()) >= MIN_OVERLAP, evidence)

    return judge


def _control(m: int) -> Callable[[Mapping[str, Any]], _Found]:
    def judge(content: Mapping[str, Any]) -> _Found:
        found = _medians(content, "B", "minedraft")
        if m not in found:
            raise _Missing(f"minedraft m = {m} of experiment B")
        overhead_ms = found[m]["control_overhead_ms"]
        return _Found(overhead_ms < MAX_CONTROL_MS[m], f"{overhead_ms:.2f} ms")

    return judge


def _of_generate(content: Mapping[str, Any]) -> _Found:
    theirs = _get(content, "pair", "generate")
    ours = _medians(content, "B", "ar")
    if theirs["m"] not in ours:
        raise _Missing(f"ar at m = {theirs['m']}")
    ratio = ours[theirs["m"]]["tokens_per_s"] / theirs["tokens_per_s"]
    return _Found(ratio >= MIN_OF_GENERATE, f"{ratio:.2f} times at {theirs['m']} requests")


def _runs(content: Mapping[str, Any]) -> _Found:
    found = _get(content, "pair", "D")
    return _equal(found, _get(found, "checked"))


_CLAIMS: tuple[tuple[str, Callable[[Mapping[str, Any]], _Found]], ...] = (
    ("all tests of tests/gpu pass on this GPU", _gpu_tests),
    ("what the GPU chooses and accepts is what the CPU's law does", _law),
    ("drafts whose tokens stay on the GPU are those of the CPU", _loop),
    ("one wait for the device a draft or verify, whatever the law", _waits),
    ("the CUDA graphs of every size are captured at load", _captured),
    ("float32 on the GPU answers as generate there, in every mode", _equals_generate),
    ("generate answers the same on GPU and CPU in float32", _generate_equals_cpu),
    ("a seeded request has the same tokens in every mode", _seeded),
    ("the same with the drafter on CPU cores", _with_cores),
    ("no answer changes when the drafter is killed", _killed),
    ("the controlled pair answers with its map in every mode", _controlled),
    (f"8B verify at m = {_M}, k = {_K} within {MAX_OF_FLOOR} of its floor", _verify_floor),
    (f"a draft token of 1B at m = {_M} within {MAX_TOKEN_MS} ms", _draft_token),
    (f"a draft of k = {_K} waits for the device once", _host_syncs),
    (f"overlap efficiency {MIN_OVERLAP} beside a simulated second GPU", _overlap("B")),
    (f"overlap efficiency {MIN_OVERLAP} of GPU and CPU cores", _overlap("C")),
    *((f"control overhead below {MAX_CONTROL_MS[m]} ms a step at m = {m}", _control(m)) for m in MAX_CONTROL_MS),
    (f"ar at least {MIN_OF_GENERATE:.0f} times generate", _of_generate),
    ("both models work on one GPU (no overlap of devices)", _runs),
)
