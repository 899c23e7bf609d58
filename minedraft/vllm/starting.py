"""Puts the plugin together for one engine: settings, policy, desk, link and groups."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from minedraft.core.policy.base import DraftPolicy, FixedDraftLen
from minedraft.core.policy.draft_len import AutoDraftLen
from minedraft.core.policy.forecast.experience import Experience
from minedraft.models.vocabulary import vocab_fingerprint
from minedraft.sampling_params import MAX_DRAFT_LEN
from minedraft.types import Mode
from minedraft.vllm.alternation import Alternation
from minedraft.vllm.compatible import assert_compatible
from minedraft.vllm.desk import DraftDesk
from minedraft.vllm.groups import Groups
from minedraft.vllm.link import DrafterLink
from minedraft.vllm.monitor.status_file import StatusFile
from minedraft.vllm.settings import PluginSettings

logger = logging.getLogger("minedraft.vllm")


class Plugin:
    """The plugin in one engine core. Made once vLLM's configuration is known; `close` ends its thread.

    Args:
        config: vLLM's `VllmConfig`. path: "V1" or "V2", the model runner that it is for.

    Raises:
        ConfigError: vLLM, a setting, or the drafter does not fit.
    """

    def __init__(self, config: Any, path: str) -> None:  # noqa: ANN401 - this file knows no vLLM
        assert_compatible(config, path)
        settings = PluginSettings.read(config.additional_config)
        most = min(config.speculative_config.num_speculative_tokens, MAX_DRAFT_LEN)
        experience = Experience()
        policy: DraftPolicy
        if settings.is_auto:
            policy = AutoDraftLen(experience)
        else:
            policy = FixedDraftLen()
            most = min(int(settings.draft_len) or most, most)
        mode = Mode.MINEDRAFT if settings.groups == 2 else Mode.SD
        self.desk = DraftDesk(most, policy, experience, mode, _say_replaced)
        self.link = DrafterLink(
            settings.address,
            self.desk,
            config.model_config.get_vocab_size(),
            vocab_fingerprint(tokenizer_folder(config.model_config.tokenizer)),
            settings.connect_timeout_s,
            self._publish,
        )
        self.alternation = Alternation(Groups(settings.groups), self.link, settings.wait_ms / 1e3)
        self._file = StatusFile(config.instance_id)
        self._settings = settings
        self.link.open()

    def close(self) -> None:
        """End the link. Safe to call twice."""
        self.link.close()
        self._file.remove()

    def status(self) -> dict[str, Any]:
        """Return what /minedraft/status shows: counts since the start, and recent times in seconds."""
        counts, summary, drafter = self.alternation.counts, self.desk.stats.summary(), self.link.info
        return {
            "drafter": {"address": self._settings.drafter, "model": None if drafter is None else drafter.model_name},
            "drafter_up": int(drafter is not None),
            "groups": self._settings.groups,
            "draft_len": "auto" if self._settings.is_auto else len(self.desk.tried),
            "steps": counts.num_steps,
            "drafted_steps": counts.num_drafted,
            "blocked_steps": counts.num_blocked,
            "late_steps": counts.num_late,
            "moved_requests": counts.num_moves,
            "exposed_seconds": counts.exposed_s,
            "verify_seconds": counts.verify_s,
            "overlap_efficiency": summary.overlap_efficiency,
            "draft_seconds": summary.draft_ms / 1e3,
            "step_seconds": summary.step_ms / 1e3,
            "tried": list(self.desk.tried),
            "accepted": list(self.desk.accepted),
        }

    def _publish(self) -> None:
        try:
            self._file.write(self.status())
        except OSError as error:  # a full disk costs the numbers, and nothing else
            logger.debug("cannot write the status: %s", error)


def _say_replaced(cause: str) -> None:
    logger.warning("the policy for the number of drafts failed, a fixed number from now on: %s", cause)


def tokenizer_folder(name: str) -> Path:
    """Return the folder of a tokenizer that is named by folder or, if it is in Hugging Face's cache, by repository.

    Raises:
        ModelError: there is no tokenizer.json.
    """
    if (folder := Path(name)).is_dir():
        return folder
    from transformers.utils import cached_file

    found = cached_file(name, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    return folder if found is None else Path(found).parent
