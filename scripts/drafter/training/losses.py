"""The distance of a drafter's distributions from the target's, with its gradient written out."""

from __future__ import annotations

from typing import Any

import torch

CHUNK = 256  # rows whose logits exist at one time
REPORTED = 128  # rows of a batch from which the reported loss is taken


class DistillationLoss(torch.autograd.Function):
    """KL(target || drafter) over the draft vocabulary, summed with weights.

    Only its gradient is exact; the value that is reported is the cross-entropy of the target's best token, which costs
    next to nothing. The gradient of a row is the difference of the two distributions times the output rows; written
    out, it needs two matrix products and never holds more than one chunk of logits.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        states: torch.Tensor,
        target: torch.Tensor,
        best: torch.Tensor,
        weights: torch.Tensor,
        rows: torch.Tensor,
        temperature: float,
    ) -> torch.Tensor:
        """Returns the loss.

        Args:
            states: [n, hidden] after the drafter's norm, bfloat16.
            best: int64 [m], m <= n, the target's best column in the first m rows, which the value is taken from (to
                find the best column of every row takes longer than a matrix product).
            target: [n, draft vocabulary], the target's probabilities at this temperature, bfloat16.
            weights: [n], of each row.
            rows: [draft vocabulary, hidden], frozen output rows, bfloat16.
        """
        gradient = torch.empty_like(states)
        seen = weights[: len(best)].float()
        loss = torch.zeros(())
        for start in range(0, len(states), CHUNK):
            part = slice(start, start + CHUNK)
            # What scales a whole row is applied to the narrow side of a product: logits are wide.
            draft = torch.softmax((states[part] * (1.0 / temperature)) @ rows.T, -1)
            if len(known := best[part]):
                chance = draft[: len(known)].gather(1, known[:, None])[:, 0].float().clamp(min=1e-6)
                loss -= (seen[part] * chance.log()).sum()
            gradient[part] = (draft.sub_(target[part]) @ rows) * (weights[part, None] / temperature)
        loss *= weights.sum() / seen.sum().clamp(min=1e-12)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        """The gradient was made with the loss."""
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None, None, None, None


def distillation_loss(
    states: torch.Tensor,
    target: torch.Tensor,
    best: torch.Tensor,
    weights: torch.Tensor,
    rows: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Returns the loss of `DistillationLoss`, whose arguments it takes."""
    loss: torch.Tensor = DistillationLoss.apply(states, target, best, weights, rows, temperature)  # type: ignore[no-untyped-call]
    return loss


def relative_error(states: torch.Tensor, goals: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns the squared distance of states [n, hidden] from the goals over the goals' square, summed with weights."""
    wanted = goals.float()
    return (weights * (states.float() - wanted).pow(2).sum(-1) / wanted.pow(2).sum(-1)).sum()


@torch.inference_mode()
def target_probabilities(states: torch.Tensor, rows: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns the target's distribution over the draft vocabulary [n, draft vocabulary], bfloat16.

    Args:
        states: [n, hidden] after the target's final norm, bfloat16.
    """
    found = torch.empty(len(states), len(rows), dtype=torch.bfloat16)
    for start in range(0, len(states), CHUNK):
        part = slice(start, start + CHUNK)
        found[part] = torch.softmax((states[part] * (1.0 / temperature)) @ rows.T, -1)
    return found
