"""What both schedulers of the plugin add to vLLM's: a mixin in front of a class of vLLM.

It takes part through vLLM's own fields: a request that rests is not eligible for a decode in this step
(`next_decode_eligible_step`), and drafts are what a proposer would have left behind (`spec_token_ids`).
"""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

from minedraft.vllm.alternation import Turn
from minedraft.vllm.starting import Plugin


class TurnTaking:
    """Two groups of the scheduler's requests take turns, with drafts from our drafter.

    Attributes:
        path: the model runner that it is for, "V1" or "V2".
    """

    path: ClassVar[str]
    requests: dict[str, Any]
    running: list[Any]
    current_step: int
    structured_output_manager: Any
    vllm_config: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        super().__init__(*args, **kwargs)
        self._plugin = Plugin(self.vllm_config, self.path)
        self._turns: deque[Turn] = deque()  # of steps whose output is to come, in their order

    def schedule(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passed on
        alternation = self._plugin.alternation
        turn = alternation.begin(self.requests, self.running)
        if not self._may_verify():
            turn.drafts = {}
        for request in self.running:
            if not request.is_prefill_chunk:
                self._prepare(request, turn)
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        alternation.admit(turn, self.requests, [new.req_id for new in output.scheduled_new_reqs])
        self._turns.append(turn)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:  # noqa: ANN401
        outputs = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        self._plugin.alternation.finish(
            self._turns.popleft(),
            self.requests,
            scheduler_output.num_scheduled_tokens,
            scheduler_output.scheduled_spec_decode_tokens,
            scheduler_output.preempted_req_ids or (),
        )
        return outputs

    def shutdown(self) -> None:
        self._plugin.close()
        super().shutdown()  # type: ignore[misc]

    def _may_verify(self) -> bool:
        """Whether drafts can be verified in the step that begins."""
        return True

    def _prepare(self, request: Any, turn: Turn) -> None:  # noqa: ANN401
        """Have a decoding request rest in the step that begins, or set its drafts."""
        raise NotImplementedError

    def _rest(self, request: Any) -> None:  # noqa: ANN401
        # The step that super().schedule() begins has the number current_step + 1.
        request.next_decode_eligible_step = self.current_step + 2

    def _set_drafts(self, request: Any, drafts: tuple[int, ...]) -> None:  # noqa: ANN401
        """Have these verified; those that break the request's grammar are cut off."""
        request.next_decode_eligible_step = 0
        tokens = list(drafts)
        request.spec_token_ids = self.structured_output_manager.validate_tokens(request, tokens) if tokens else tokens
