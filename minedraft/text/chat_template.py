"""Renders chat messages with the model's own template, in a sandbox, because the template is code of the folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minedraft.errors import InvalidRequest, ModelError
from minedraft.models.files import read_json_object

Message = Mapping[str, Any]
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Some templates require a system message first, and some refuse it.
_PROBES = (
    ({"role": "user", "content": "a question"},),
    ({"role": "system", "content": "an instruction"}, {"role": "user", "content": "a question"}),
)
_TEMPLATE_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RecursionError,
)


class ChatTemplate:
    """A model's chat template.

    Args:
        origin: the file that `source` is from, for error messages.

    Attributes:
        source: the template's text; None if the model has none.
    """

    def __init__(
        self,
        source: str | None,
        special_tokens: Mapping[str, str],
        model_name: str,
        now: Callable[[], datetime] = datetime.now,
        origin: Path | None = None,
    ) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._model_name = model_name
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock], autoescape=False
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda format: now().strftime(format)
        try:
            self._template = environment.from_string(source) if source is not None else None
        except (TemplateError, RecursionError) as error:
            limit = f"the template cannot be read ({error})"
            raise ModelError("chat_template", str(origin or model_name), limit) from error
        as_text, as_parts = self._probe(as_parts=False), self._probe(as_parts=True)
        self._reads_parts = _rank(as_parts) > _rank(as_text)
        self._is_deaf = False in as_text + as_parts and True not in as_text + as_parts

    @classmethod
    def load(cls, model_dir: Path) -> ChatTemplate:
        """Return the template of chat_template.jinja or else of tokenizer_config.json (a string, or from a list
        of named ones "default").

        Raises:
            ModelError: the template is not valid Jinja, or a file cannot be read.
        """
        model_dir = Path(model_dir)
        file = model_dir / "chat_template.jinja"
        try:
            source: str | None = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            file = model_dir / "tokenizer_config.json"
            source = _default_of(read_json_object(file, "tokenizer").get("chat_template"))
        except OSError as error:
            raise ModelError("chat_template", str(file), f"cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise ModelError("chat_template", str(file), "not UTF-8 text") from error
        return cls(source, read_special_tokens(model_dir), model_dir.name, origin=file)

    @property
    def knows_tools(self) -> bool:
        """Whether it describes tools to the model, and their calls in Hermes' form (<tool_call>)."""
        return self.source is not None and "tools" in self.source and "<tool_call>" in self.source

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return the prompt text for `messages`, each {"role": ..., "content": ...}.

        Args:
            tools: functions that the model may call, for a template that `knows_tools`; its messages may then have
                `tool_calls`, and the role "tool".

        Raises:
            InvalidRequest: the messages are malformed, there is no template, or it refuses the messages
                (roles that do not alternate, for example) or drops their content.
        """
        if self._template is None:
            raise InvalidRequest(
                "messages", f"{len(messages)} messages", f"the model {self._model_name} has no chat template; send text"
            )
        _check_messages(messages)
        if self._is_deaf:
            limit = f"the chat template of {self._model_name} drops the content of messages; send text"
            raise InvalidRequest("messages", f"{len(messages)} messages", limit)
        try:
            return self._render(self._template, messages, add_generation_prompt, self._reads_parts, tools)
        except _TEMPLATE_ERRORS as error:
            roles = [message["role"] for message in messages]
            raise InvalidRequest("messages", roles, f"the model's chat template refuses them ({error})") from error

    def _render(
        self,
        template: Template,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        as_parts: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        return template.render(
            messages=[
                {**message, "content": [{"type": "text", "text": message["content"]}]} if as_parts else dict(message)
                for message in messages
            ],
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            documents=None,
            **self._special_tokens,
        )

    def _probe(self, *, as_parts: bool) -> list[bool]:
        """Return, for each probe chat that the template does not refuse, whether the content appears in the prompt.

        Args:
            as_parts: give content as a list of typed parts, as templates of multimodal models expect it,
                instead of as text.
        """
        shown: list[bool] = []
        for chat in _PROBES if self._template is not None else ():
            assert self._template is not None, "checked in the line above"
            try:
                prompt = self._render(self._template, chat, True, as_parts).casefold()
            except _TEMPLATE_ERRORS:
                continue
            is_there = chat[-1]["content"].casefold() in prompt
            shown.append(is_there and "'type': 'text'" not in prompt)  # else the list itself was printed
        return shown


def _rank(shown: Sequence[bool]) -> int:
    """Return 2 if the content appears in every chat, 1 in some, 0 in none or without a chat."""
    return any(shown) + (bool(shown) and all(shown))


def read_special_tokens(model_dir: Path) -> dict[str, str]:
    """Return the texts of a model's special tokens by their names, "eos_token" and the like.

    Raises:
        ModelError: a file cannot be read.
    """
    names: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        names |= read_json_object(Path(model_dir) / file, "tokenizer")
    return {name: text for name in _SPECIAL_TOKENS if (text := _token_text(names.get(name))) is not None}


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's text for training; here it renders as
    its content."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _check_messages(messages: Sequence[Message]) -> None:
    if not messages:
        raise InvalidRequest("messages", [], "must have at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InvalidRequest(f"messages[{i}]", message, 'must be {"role": ..., "content": ...}')
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise InvalidRequest(f"messages[{i}].{key}", message.get(key), "must be a string")


def _default_of(templates: object) -> str | None:
    if isinstance(templates, list):
        named = {entry.get("name"): entry.get("template") for entry in templates if isinstance(entry, dict)}
        templates = named.get("default")
    return templates if isinstance(templates, str) else None


def _token_text(token: object) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON without the HTML escapes of Jinja's own filter, which would change the prompt."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
