"""The route `/minedraft/status` of vLLM's API server (entry point group `vllm.endpoint_plugins`).

vLLM adds it only if `VLLM_PLUGINS` names `minedraft`.
"""

from __future__ import annotations

from typing import Any

from minedraft.vllm.monitor.status_file import read_statuses


class StatusRoute:
    """What vLLM calls an endpoint plugin."""

    name = "minedraft"
    required_tasks = None

    def __init__(self) -> None:
        self._engine_id = ""

    def attach_router(self, app: Any) -> None:  # noqa: ANN401
        app.add_api_route("/minedraft/status", self.status, methods=["GET"], response_model=None)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:  # noqa: ANN401
        if engine_client is not None:
            self._engine_id = engine_client.vllm_config.instance_id

    def status(self) -> dict[str, Any]:
        """Return the status of each engine core, by data parallel rank."""
        return {"engines": read_statuses(self._engine_id) if self._engine_id else {}}
