"""What a comparison shows: medians, the bound on what taking turns can gain, and sentences about who loses, and why.

Pure: the same samples give the same findings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from scripts.lib.vllm.counters import Counters
from scripts.lib.vllm.servers import Sample
from scripts.lib.vllm.ways import Way

Rates = Mapping[tuple[Way, int], float]


@dataclass(frozen=True, slots=True)
class Times:
    """How long a round takes at so many requests together, in seconds: medians of serial runs, in which every draft is
    waited for and every verify has all requests."""

    draft_s: float
    verify_s: float


@dataclass(frozen=True, slots=True)
class Line:
    """What was found at one number of requests in flight.

    Attributes:
        gain: alternating / serial, the median over the repeats of the quotient within one. gains: of each repeat.
        bound: the most that this quotient can be, from the times; None if they are not known.
        blocked: share of an alternating run's time in which a step waited for drafts; None if it is not known.
        blocked_steady: the same while all answers are in flight: without the first drafts of a run, which nothing can
            hide, and without its end, when one group has run out.
        acceptance: share of drafts accepted by way, of those with drafts.
    """

    num_in_flight: int
    gain: float
    gains: tuple[float, ...]
    bound: float | None
    blocked: float | None
    blocked_steady: float | None
    acceptance: Mapping[Way, float]


def split_bound(whole: Times, half: Times) -> float:
    """Return how much faster two groups of half the requests can be than all requests in turn with their drafts:
    (Td(B) + Tv(B)) / (2 max(Td(B/2), Tv(B/2)))."""
    return (whole.draft_s + whole.verify_s) / (2 * max(half.draft_s, half.verify_s))


def median_rates(samples: Iterable[Sample]) -> Rates:
    """Return the median tokens/s in steady decoding of each way and number in flight."""
    rates: dict[tuple[Way, int], list[float]] = defaultdict(list)
    for sample in samples:
        if (rate := rate_of(sample)) is not None:
            rates[sample.way, sample.cell.num_in_flight].append(rate)
    return {key: median(values) for key, values in rates.items()}


def rate_of(sample: Sample) -> float | None:
    """Return the tokens/s while all answers are in flight; None if that time was too short to tell."""
    return sample.rates.decode_tokens_per_s


def round_times(samples: Iterable[Sample]) -> dict[int, Times]:
    """Return the times of a round by requests together, from the serial samples whose server tells them.

    They are of steps while all answers are in flight, for one that reads a prompt takes longer than a verify; of all
    steps if no sample knows those.
    """
    serial = [sample for sample in samples if sample.way is Way.SERIAL]
    is_steady = any(sample.steady is not None for sample in serial)
    found: dict[int, list[Times]] = defaultdict(list)
    for sample in serial:
        counters = sample.steady if is_steady else sample.counters
        steps = None if counters is None else counters.steps
        if steps is not None and steps.num_drafted:
            times = Times(steps.waited_s / steps.num_drafted, steps.verify_s / steps.num_steps)
            found[sample.cell.num_in_flight].append(times)
    return {
        count: Times(median(each.draft_s for each in times), median(each.verify_s for each in times))
        for count, times in found.items()
    }


def verify_times(times: Mapping[int, Times], most: int) -> dict[int, float]:
    """Return the seconds of a verify of 1 to `most` requests: between two measured numbers on a straight line, outside
    of them as of the nearest; nothing if none is measured."""
    known = sorted(times)
    found: dict[int, float] = {}
    for count in range(1, most + 1 if known else 1):
        below = max((n for n in known if n <= count), default=known[0])
        above = min((n for n in known if n >= count), default=known[-1])
        part = (count - below) / (above - below) if below < above else 0.0
        found[count] = times[below].verify_s + part * (times[above].verify_s - times[below].verify_s)
    return found


def paced_times(times: Mapping[int, Times], most: int, share: float) -> dict[int, Times]:
    """Return the times of a round of 1 to `most` requests with a drafter that takes a share of the verify."""
    return {count: Times(share * verify_s, verify_s) for count, verify_s in verify_times(times, most).items()}


def to_lines(samples: Sequence[Sample], times: Mapping[int, Times]) -> list[Line]:
    """Return a line for each number in flight at which both serial and alternating were measured.

    Args:
        times: of a round by requests together, for the bound.
    """
    counts = sorted({sample.cell.num_in_flight for sample in samples})
    lines = []
    for count in counts:
        here = [sample for sample in samples if sample.cell.num_in_flight == count]
        if gains := _gains(here):
            whole, half = times.get(count), times.get(count // 2)
            bound = split_bound(whole, half) if whole is not None and half is not None else None
            alternating = [sample for sample in here if sample.way is Way.ALTERNATING]
            blocked = _blocked([sample.counters for sample in alternating])
            steady = _blocked([sample.steady for sample in alternating if sample.steady is not None])
            lines.append(Line(count, median(gains), gains, bound, blocked, steady, _acceptances(here)))
    return lines


def _gains(samples: Iterable[Sample]) -> tuple[float, ...]:
    """Return alternating / serial within each repeat: what slows the machine for a while slows both."""
    rates = {(sample.repeat, sample.way): rate for sample in samples if (rate := rate_of(sample)) is not None}
    repeats = sorted({repeat for repeat, _ in rates})
    pairs = [(rates.get((repeat, Way.ALTERNATING)), rates.get((repeat, Way.SERIAL))) for repeat in repeats]
    return tuple([fast / slow for fast, slow in pairs if fast is not None and slow is not None])


def _blocked(counted: Iterable[Counters]) -> float | None:
    shares = [
        steps.waited_s / max(steps.waited_s + steps.verify_s, 1e-9)
        for counters in counted
        if (steps := counters.steps) is not None
    ]
    return median(shares) if shares else None


def _acceptances(samples: Iterable[Sample]) -> dict[Way, float]:
    shares: dict[Way, list[float]] = defaultdict(list)
    for sample in samples:
        if (share := sample.counters.acceptance) is not None:
            shares[sample.way].append(share)
    return {way: median(values) for way, values in shares.items()}


def to_sentences(samples: Sequence[Sample], times: Mapping[int, Times]) -> list[str]:
    """Return where alternating loses and why, in plain words, and where it wins."""
    rates, lines = median_rates(samples), to_lines(samples, times)
    sentences = []
    for line in lines:
        count, sentence = line.num_in_flight, _against_serial(line, times)
        sentences.append(f"{count} in flight: {sentence}")
        for way in (Way.AR, Way.AR_WIDE):
            quotient = rates[Way.ALTERNATING, count] / rates[way, count] if (way, count) in rates else 1.0
            if quotient < 1:
                sentences.append(f"  it has {quotient:.2f} of the tokens/s of {way.value}: {_why_ar_wins(line, times)}")
    return sentences


def _against_serial(line: Line, times: Mapping[int, Times]) -> str:
    bound = "" if line.bound is None else f" (bound {line.bound:.2f})"
    if line.gain >= 1:
        return f"alternating is {line.gain:.2f} times as fast as serial{bound}"
    whole, half = times.get(line.num_in_flight), times.get(line.num_in_flight // 2)
    why = "halving a batch costs more than the hidden drafting saves"
    if whole is not None and half is not None:
        why += (
            f": two verifies of {line.num_in_flight // 2} take {2e3 * half.verify_s:.0f} ms, "
            f"a draft and a verify of {line.num_in_flight} {1e3 * (whole.draft_s + whole.verify_s):.0f} ms"
        )
    return f"alternating loses to serial, {line.gain:.2f} of its tokens/s{bound}: {why}"


def _why_ar_wins(line: Line, times: Mapping[int, Times]) -> str:
    share = line.acceptance.get(Way.ALTERNATING)
    accepted = "" if share is None else f", and {share:.0%} of the drafts stand"
    here = times.get(line.num_in_flight)
    verify = "" if here is None else f" (a verify of {line.num_in_flight}: {1e3 * here.verify_s:.0f} ms)"
    return f"on a core each further row of a forward costs time{verify}{accepted}"
