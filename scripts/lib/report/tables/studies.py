"""Small studies, a table for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripts.lib.report.markdown import percent, times, to_table
from scripts.lib.report.results import Results


def padding_table(results: Results, file: str) -> str:
    header = (
        "`--stream-tokens`",
        "tokens/s",
        "bytes a token",
        "messages a token",
        "sizes of messages",
        "first text, ms",
    )
    return to_table(
        header,
        [
            [
                str(row["stream_tokens"]),
                f"{row['tokens_per_s']:.0f}",
                f"{row['bytes_per_token']:.0f}",
                f"{row['messages_per_token']:.2f}",
                str(row["sizes"]),
                f"{row['first_text_ms']:.0f}",
            ]
            for row in results.load(file)["rows"]
        ],
    )


def two_hosts_table(results: Results, file: str) -> str:
    """Return tokens/s with a still and with a far wire, and the share that is kept."""
    [pair] = results.load(file)["pairs"].values()
    return to_table(
        ("mode, in flight", "still wire, tokens/s", "far wire, tokens/s", "kept"),
        [
            [f"{name}, {row['in_flight']}", f"{row['still']:.0f}", f"{row['far']:.0f}", f"{row['kept']:.2f}"]
            for name, row in pair["tokens_per_s"].items()
        ],
    )


def useless_table(results: Results, file: str) -> str:
    """Return rates with a draft model of noise: watched, and drafting on."""
    services = results.load(file)["services"]
    base = services["ar"]["first_tokens_per_s"]
    return to_table(
        ("service", "first answers, tokens/s", "of `ar`", "after them, tokens/s", "of `ar`"),
        [
            [
                name,
                f"{row['first_tokens_per_s']:.0f}",
                f"{row['first_tokens_per_s'] / base:.2f}",
                f"{row['tokens_per_s']:.0f}",
                f"{row['of_ar']:.2f}",
            ]
            for name, row in services.items()
        ],
    )


def ways_table(results: Results, file: str) -> str:
    """Return what `scripts/bench/drafts` compares: a line for each setting and way."""
    return to_table(
        ("setting", "way", "tokens/s", "of the first way", "tokens a round", "drafts accepted"),
        [
            [
                row["setting"],
                row["way"],
                f"{row['tokens_per_s']:.0f}",
                times(row["ratio"]),
                f"{row['tokens_per_round']:.2f}",
                percent(row["vsr"]),
            ]
            for row in results.load(file)["rows"]
        ],
    )


def sampled_table(results: Results, file: str) -> str:
    """Return greedy and both ways of sampling in each mode."""
    lines = []
    for table in results.load(file)["tables"]:
        for row in table["rows"]:
            figures = row["median"]
            drafted = f"{figures['mean_accepted_len']:.2f}" if row["config"]["mode"] != "ar" else ""
            kilobytes = f"{figures['wire_bytes_per_step'] / 1e3:.1f}"
            lines.append([table["way"], row["config"]["label"], f"{figures['tokens_per_s']:.0f}", drafted, kilobytes])
    return to_table(("way", "mode", "tokens/s", "drafts accepted a round", "KB a step"), lines)


def pearl_table(results: Results, file: str) -> str:
    [part] = results.load(file)
    return to_table(
        ("one request in flight", "tokens/s", "draft, ms", "verify, ms", "step, ms", "prepared branches used"),
        [
            [
                row["label"],
                f"{row['median']['tokens_per_s']:.0f}",
                *(_ms(row["median"][name]) for name in ("draft_ms", "verify_ms", "step_ms")),
                percent(row["median"]["hit_rate"]) if row["branches"] else "",
            ]
            for table in part["tables"]
            for row in table["rows"]
        ],
    )


def channels_table(results: Results, file: str) -> str:
    """Return the time of a step by what carries its tensors."""
    steps = results.load(file)["steps"]
    carriers = list(steps[0]["carriers"])
    return to_table(
        ("tensors", "requests", "KB", *(f"{name}, ms" for name in carriers)),
        [
            [
                step["load"],
                str(step["num_requests"]),
                f"{step['tensor_bytes'] / 1e3:,.0f}",
                *(f"{step['carriers'][name]['step_us'] / 1e3:.1f}" for name in carriers),
            ]
            for step in steps
        ],
    )


def cores_table(results: Results, file: str) -> str:
    names = ("one_core_ms", "given_all_cores_ms", "loaded_on_all_cores_ms")
    return to_table(
        ("requests", "one core, ms", "given the other one, ms", "loaded on both, ms"),
        [
            [str(row["requests"]), *(_ms(row[name]) for name in names)]
            for row in results.load(file)["forwards"]
        ],
    )  # fmt: skip


def doors_table(results: Results, file: str) -> str:
    """Return the HTTP door beside the gRPC door, and 200 streams at once."""
    content = results.load(file)
    rows: Mapping[str, Mapping[str, Any]] = {
        **content["median"],
        f"http, {content['many']['streams']} at once": content["many"],
    }
    return to_table(
        ("door", "tokens/s", "first byte, ms", "scheduler's own time a step, ms", "failed"),
        [
            [
                name,
                f"{row['tokens_per_s']:.0f}",
                f"{row['first_byte_ms']:.0f}",
                f"{row['control_overhead_ms']:.2f}",
                str(row["num_failed"]),
            ]
            for name, row in rows.items()
        ],
    )  # fmt: skip


def guidellm_table(results: Results, file: str) -> str:
    """Return what guidellm's report says, with its count of tokens beside the service's own."""
    return to_table(
        ("streams", "requests, failed", "tokens/s", "first token, median ms", "95 %", "between tokens, median ms",
         "tokens counted, served"),
        [
            [
                str(each["streams"]),
                f"{each['requests']['successful']}, {each['requests']['errored'] + each['requests']['incomplete']}",
                f"{each['output_tokens_per_s']:.0f}",
                *(f"{each['time_to_first_token_ms'][name]:.0f}" for name in ("p50", "p95")),
                f"{each['inter_token_latency_ms']['p50']:.1f}",
                f"{each['output_tokens']:,.0f}, {each['served_tokens']:,}",
            ]
            for each in results.load(file)["runs"]
        ],
    )  # fmt: skip


def observing_table(results: Results, file: str) -> str:
    """Return how much longer a step is with metrics and with a trace, in pairs of runs."""
    content = results.load(file)
    return to_table(
        ("load", "mode, in flight", "step with metrics", "step with a trace"),
        [
            [
                load["load"],
                f"{load['mode']} {load['num_in_flight']}",
                *(f"{load['step_ms']['ratios'][name]:.3f}x" for name in ("metrics", "trace")),
            ]
            for load in content["loads"]
        ],
    )


def control_table(results: Results, file: str) -> str:
    """Return steps/s with workers whose forward takes no time."""
    return to_table(
        ("mode, in flight", "steps/s", "bytes a step"),
        [
            [f"{row['mode']} {row['num_in_flight']}", f"{row['steps_per_s']:.0f}", f"{row['wire_bytes_per_step']:.0f}"]
            for row in results.load(file)["steps"]
        ],
    )


def choosing_table(results: Results, file: str) -> str:
    """Return the time of choosing a token of each row at 16 rows, ours and torch's."""
    rows = [row for row in results.load(file)["rows"] if row["rows"] == 16]
    names = ("draft_us", "draft_torch_us", "verify_us", "verify_torch_us")
    return to_table(
        ("rule", "parameters", "drafted, us", "by torch", "verified, us", "by torch"),
        [[row["rule"], row["kind"], *(f"{row[name]:.0f}" for name in names)] for row in rows],
    )


def products_table(results: Results, file: str) -> str:
    """Return the matrix products' times over their floors, by rows; in brackets torch's."""
    rows = results.load(file)["linear"]
    counts = list(dict.fromkeys(row["rows"] for row in rows))
    lines = []
    for what in dict.fromkeys(row["what"] for row in rows):
        own = {row["rows"]: row for row in rows if row["what"] == what}
        cells = [
            f"{own[count]['ratio']:.2f} ({own[count]['torch_us'] / own[count]['floor_us']:.2f})" for count in counts
        ]
        lines.append([what, *cells])
    return to_table(["matrix, rows", *map(str, counts)], lines)


def chaos_table(results: Results, file: str) -> str:
    """Return the faults that chaos made, and how soon all was back."""
    kinds = results.load(file)["faults"]["by_kind"]
    return to_table(
        ("fault", "times", "back after, median s", "most"),
        [
            [kind, str(row["count"]), f"{row['back_s']['p50']:.1f}", f"{row['back_s']['max']:.1f}"]
            for kind, row in kinds.items()
        ],
    )


def _ms(value: float) -> str:
    return f"{value:.1f}" if value else ""
