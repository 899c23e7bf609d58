"""The random load: which requests come when, and how their clients behave. The seed decides all of it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from itertools import accumulate, count
from typing import Any

from tests.stress.presets import Preset
from tests.stress.truth import Known, PoolPrompt, Seeded, Truth, sampling

_MAX_BURST = 4  # requests a client at once
_MAX_PHASE_TOKENS = 1200  # of answers: the last in the queue must not wait so long that it seems to hang
_CLOSE_MAX_PIECES = 5


class Way(Enum):
    """How the client takes its answer."""

    WHOLE = "whole"
    ABORT = "abort"  # by the Abort call, after a while
    CLOSE = "close"  # the stream, after some pieces
    CANCEL = "cancel"  # the task that reads, after a while
    DEADLINE = "deadline"  # that may pass before the end
    TWIN = "twin"  # another request with the same id is sent as well


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Attributes:
        start_s: seconds after the start of its phase.
        after: seconds until ABORT, CANCEL or DEADLINE, pieces until CLOSE.
        known: the greedy continuation, if its answer is known. seeded: which one of the seeded, if one of them.
        is_invalid: it must be refused.
    """

    number: int
    prompt: PoolPrompt
    params: Mapping[str, Any]
    request_id: str
    start_s: float = 0.0
    way: Way = Way.WHOLE
    after: float = 0.0
    known: Known | None = None
    seeded: Seeded | None = None
    is_invalid: bool = False

    @property
    def max_tokens(self) -> int:
        """Of all its samples together."""
        return 0 if self.is_invalid else int(self.params["max_new_tokens"] * self.params.get("n", 1))

    def __str__(self) -> str:
        return f"#{self.number} ({len(self.prompt.token_ids)} tokens, {dict(self.params)}, {self.way.value})"


@dataclass(frozen=True, slots=True)
class Phase:
    """Requests that belong together. The next phase begins when all have ended, `pause_s` later: a request
    that waits for a wake-up gets none from outside."""

    asks: tuple[Ask, ...]
    pause_s: float


class Load:
    """An endless sequence of phases for one preset.

    Args:
        num_clients: how many clients there are to share a phase.
    """

    def __init__(self, seed: str, preset: Preset, truth: Truth, num_clients: int) -> None:
        self._rng = random.Random(seed)
        self._context = preset.context
        self._truth = truth
        self._is_tight = preset.is_tight
        self._num_most = num_clients * (_MAX_BURST // 2 if preset.is_tight else _MAX_BURST)
        self._numbers = count(1)
        self._plain = [known for known in truth.plain if self._room(known.prompt) > 0]
        self._adjusted = [known for known in truth.adjusted if self._limit(known) > 0]
        self._seeded = [seeded for seeded in truth.seeded if self._room(seeded.prompt) > 0]
        # Two or three of these fit tight KV at first, and no longer when they grow.
        self._growing = self._of_length(0.1, 0.45)
        # Two of these do not fit a round's budget for prompts, and one does.
        self._chunky = self._of_length(0.3, 0.6)

    def phases(self) -> Iterator[Phase]:
        """Crowds that trickle in, bursts, a few at once, long answers, prompts of many lengths, one alone."""
        makers: tuple[Callable[[], list[Ask]], ...]
        makers = (self._crowd, self._burst, self._few, self._long, self._uneven, self._alone)
        # What is over soon comes more often, and where KV is tight, that which fills it.
        weights = (1, 1, 3, 20, 4, 1) if self._is_tight else (2, 2, 3, 4, 8, 1)
        while True:
            asks = self._rng.choices(makers, weights)[0]()
            sizes = accumulate(ask.max_tokens for ask in asks)
            asks = [ask for ask, size in zip(asks, sizes, strict=True) if size <= _MAX_PHASE_TOKENS] or asks[:1]
            asks += [self._twin(ask) for ask in asks if ask.way is Way.TWIN]
            yield Phase(tuple(asks), self._rng.choice((0, 0, 0.02, 0.3)))

    def _crowd(self) -> list[Ask]:
        return [self._ask(self._rng.uniform(0, 1)) for _ in range(self._rng.randint(2, self._num_most))]

    def _burst(self) -> list[Ask]:
        return [self._ask() for _ in range(self._rng.randint(2, self._num_most))]

    def _few(self) -> list[Ask]:
        return [self._ask(self._rng.choice((0, 0.01))) for _ in range(self._rng.randint(2, 4))]

    def _long(self) -> list[Ask]:
        known = self._rng.choices(self._growing, k=self._rng.choice((2, 2, 3)))
        return [
            self._of_known(k, {"max_new_tokens": self._rng.randint(1 + self._limit(k) // 3, self._limit(k))})
            for k in known
        ]

    def _uneven(self) -> list[Ask]:
        known = self._rng.choices(self._chunky, k=self._rng.randint(6, 16))
        return [self._of_known(k, {"max_new_tokens": min(self._rng.choice((1, 16)), self._limit(k))}) for k in known]

    def _alone(self) -> list[Ask]:
        return [self._ask()]

    def _ask(self, start_s: float = 0.0) -> Ask:
        makers = (self._greedy, self._top_one, self._changed, self._from_seed, self._sampled, self._invalid)
        ask = self._rng.choices(makers, (50, 6, 12, 12, 16, 4))[0]()
        ask = replace(ask, start_s=start_s)
        if ask.is_invalid:
            return ask
        way = self._rng.choices(list(Way), (70, 7, 7, 7, 7, 2))[0]
        after = self._rng.randint(1, _CLOSE_MAX_PIECES) if way is Way.CLOSE else self._rng.choice((0, 0.01, 0.1, 0.5))
        return replace(ask, way=way, after=after or (0.001 if way is Way.DEADLINE else 0))

    def _twin(self, ask: Ask) -> Ask:
        return replace(ask, number=next(self._numbers), start_s=ask.start_s + self._rng.choice((0, 0.005)))

    # Kinds of one request

    def _greedy(self) -> Ask:
        known = self._rng.choice(self._plain)
        params = {"max_new_tokens": self._num_new(known)} | self._stops(known) | self._extras()
        return self._of_known(known, params)

    def _top_one(self) -> Ask:
        """Sampling from one token is greedy, by another path."""
        known = self._rng.choice(self._plain)
        params = {"max_new_tokens": self._num_new(known), "temperature": 0.7, "top_k": 1}
        return self._of_known(known, params | self._stops(known))

    def _changed(self) -> Ask:
        if not self._adjusted:
            return self._greedy()
        known = self._rng.choice(self._adjusted)
        num_new = max(self._num_new(known), known.params.get("min_new_tokens", 1))
        extras = self._extras()
        extras.pop("ignore_eos", None)  # EOS is among what min_new_tokens masks
        return self._of_known(known, {"max_new_tokens": num_new} | dict(known.params) | extras)

    def _from_seed(self) -> Ask:
        if not self._seeded:
            return self._sampled()
        seeded = self._rng.choice(self._seeded)
        num_new = self._rng.randint(1, min(60, self._room(seeded.prompt)))
        params = {"max_new_tokens": num_new, "n": self._rng.choice((1, 1, 1, 2))} | dict(seeded.params)
        return self._new(seeded.prompt, params, seeded=seeded)

    def _sampled(self) -> Ask:
        prompt = self._rng.choice(self._plain).prompt
        room = self._room(prompt)
        num_new = room if self._rng.random() < 0.04 else self._rng.randint(1, min(60, room))
        params = {"max_new_tokens": num_new} | sampling(self._rng, self._truth.vocab_size) | self._extras()
        if self._rng.random() < 0.2:
            params["min_new_tokens"] = self._rng.randint(1, num_new)
        if self._rng.random() < 0.2:
            params["stop_token_ids"] = tuple(self._rng.sample(range(3, self._truth.vocab_size), 10))
        return self._new(prompt, params)

    def _invalid(self) -> Ask:
        vocab_size, context = self._truth.vocab_size, self._context
        given, params = self._rng.choice(
            (
                ([], {}),
                ("", {}),
                ([5] * context, {"max_new_tokens": 1}),
                ([5] * (context - 3), {"max_new_tokens": 4}),
                ([5] * 20_000, {"max_new_tokens": 1}),
                ([5, vocab_size], {}),
                ([5], {"stop_token_ids": (vocab_size,)}),
                ([5], {"logit_bias": {vocab_size: 1.0}}),
                ([5], {"temperature": -1.0}),
                ([5], {"top_p": 0.0}),
                ([5], {"max_new_tokens": 0}),
                ([5], {"n": 65}),
                ([5], {"seed": -1}),
                ([5], {"stop": ("",)}),
            )
        )
        return replace(self._new(PoolPrompt(given, ()), {"max_new_tokens": 4} | params), is_invalid=True)

    # Parts of requests

    def _of_known(self, known: Known, params: Mapping[str, Any]) -> Ask:
        return replace(self._new(known.prompt, params), known=known)

    def _new(self, prompt: PoolPrompt, params: Mapping[str, Any], seeded: Seeded | None = None) -> Ask:
        number = next(self._numbers)
        return Ask(number, prompt, params, f"ask-{number}", seeded=seeded)

    def _extras(self) -> dict[str, Any]:
        extras: dict[str, Any] = {}
        if self._rng.random() < 0.3:
            extras["ignore_eos"] = True
        if self._rng.random() < 0.1:
            extras["logprobs"] = self._rng.choice((0, 1, 5, 20))
        if self._rng.random() < 0.1:
            extras["n"] = self._rng.randint(2, 4)
        return extras

    def _stops(self, known: Known) -> dict[str, Any]:
        """Sometimes stop ids or strings, mostly such that come in the answer."""
        if self._rng.random() < 0.15:
            return {"stop_token_ids": tuple(self._rng.choices(known.tokens, k=2))}
        # ASCII, for a part of another character may go together with one of the prompt.
        pieces = re.findall(r"[ -~]{1,3}", self._truth.text(known.tokens))
        if self._rng.random() < 0.15 and pieces:
            return {"stop": (self._rng.choice(pieces), "never said")}
        return {}

    def _num_new(self, known: Known) -> int:
        limit = self._limit(known)
        low, high = self._rng.choices(((1, 1), (2, 4), (5, 40), (41, 96)), (15, 10, 45, 30))[0]
        return min(self._rng.randint(low, high), limit)

    def _limit(self, known: Known) -> int:
        """New tokens that fit, and are known; 0 when there are fewer than the minimum length."""
        limit = min(len(known.tokens), self._room(known.prompt))
        return limit if limit >= known.params.get("min_new_tokens", 1) else 0

    def _of_length(self, low: float, high: float) -> list[Known]:
        """Prompts with at least and at most these shares of the context."""
        return [known for known in self._plain if low <= len(known.prompt.token_ids) / self._context <= high]

    def _room(self, prompt: PoolPrompt) -> int:
        return self._context - len(prompt.token_ids)
