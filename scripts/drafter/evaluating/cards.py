"""The card that goes with a drafter's weights, and the table of its main figures."""

from __future__ import annotations

from typing import Any

from scripts.drafter.evaluating.measure import LOOKUP

CARD = """\
---
license: {licence}
base_model: {target}
pipeline_tag: text-generation
---
# {title}

{what}

{shape}

## How it was trained

By `scripts/train_drafter` on CPU; every constant is in its work folder's config.toml. Data: only the target's own
answers, {data}.

{start} Then {trained_tokens:,} tokens of training in {steps:,} steps: KL to the target's distribution over the draft
vocabulary of {vocabulary:,} ids, rebuilt from its recorded last states.

## Figures

{num_prompts} prompts never trained on ({counts}), {answer_tokens:,} tokens of greedy and sampled answers.

{figures}

## Licence

{licence_text}
"""
WHAT = {
    "head": (
        "A drafting head: it reads the target's hidden states and proposes tokens for speculative decoding. Alone it\n"
        "is no language model; with the target verifying, the output is the target's own."
    ),
    "model": (
        "A pruned, distilled copy of the target that proposes tokens for speculative decoding with it. By itself it\n"
        "is a poor language model; with the target verifying, the output is the target's own."
    ),
}
START = {
    "head": (
        "Start: the layers are the target's last ones; what joins features and token was fitted by least squares to\n"
        "the target's own states."
    ),
    "model": (
        "Start, in closed form: each trained layer's down projection was refitted by least squares, so that the\n"
        "cut's residual stream follows the target's."
    ),
}
SHOWN_KS = {"head": 3, "model": 4}


def figures(result: dict[str, Any]) -> list[str]:
    """The main figures, as lines of a table."""
    k = SHOWN_KS[result["kind"]]
    names = ("trained", "packed", "trained + lookup", LOOKUP)
    lines = [
        f"Tokens a round at k = {k}:",
        "",
        "| prompts | mode | " + " | ".join(names) + " | first draft accepted |",
        "|---" * (len(names) + 3) + "|",
    ]
    for mode, kinds in result["acceptance"].items():
        for kind, rows in kinds.items():
            values = " | ".join(f"{rows[name]['tokens_per_round'][k - 1]:.2f}" for name in names)
            lines.append(f"| {kind} | {mode} | {values} | {rows['trained']['accepted_at'][0]:.2f} |")
    return lines


def card(result: dict[str, Any], shape: str, data: str, licence: str, licence_text: str) -> str:
    """Returns the card.

    Args:
        shape: a paragraph on what the drafter is made of.
        data: what the target answered.
        licence: the target's, as a card names it; the drafter's is the same.
    """
    kind = result["kind"]
    return CARD.format(
        licence=licence,
        target=result["target"],
        title=("Drafting head of " if kind == "head" else "Drafter of ") + result["target"],
        what=WHAT[kind],
        shape=shape,
        data=data,
        start=START[kind],
        trained_tokens=result["trained_tokens"],
        steps=result["steps"],
        vocabulary=result["draft_vocabulary"],
        num_prompts=sum(result["prompts"].values()),
        counts=", ".join(f"{number} {name}" for name, number in result["prompts"].items()),
        answer_tokens=result["answer_tokens"],
        figures="\n".join(figures(result)),
        licence_text=licence_text,
    )
