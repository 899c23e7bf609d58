"""Renders chat messages with the model's own template, in a sandbox: templates come with model folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minedraft.errors import InvalidRequest, ModelError

Message = Mapping[str, str]
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """A model's chat template.

    Attributes:
        source: the template's text, None when the model has none.
    """

    def __init__(
        self,
        source: str | None,
        special_tokens: Mapping[str, str],
        model_name: str,
        now: Callable[[], datetime] = datetime.now,
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
        except TemplateError as error:
            raise ModelError("chat_template", model_name, f"the template cannot be read ({error})") from error

    @classmethod
    def load(cls, model_dir: Path) -> ChatTemplate:
        """Read chat_template.jinja, or the chat_template of tokenizer_config.json (a string, or a list
        of named ones: the one called "default").

        Raises:
            ModelError: the template is not valid Jinja.
        """
        model_dir = Path(model_dir)
        config = _read_json(model_dir / "tokenizer_config.json")
        settings = _read_json(model_dir / "special_tokens_map.json") | config
        specials = {name: text for name in _SPECIAL_TOKENS if (text := _token_text(settings.get(name))) is not None}
        file = model_dir / "chat_template.jinja"
        source = file.read_text(encoding="utf-8") if file.exists() else _default_of(config.get("chat_template"))
        return cls(source, specials, model_dir.name)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Return the prompt text for `messages`, each {"role": ..., "content": ...}.

        Raises:
            InvalidRequest: malformed messages, no template, or the template refuses them (roles that
                do not alternate, for example).
        """
        if self._template is None:
            raise InvalidRequest(
                "messages", f"{len(messages)} messages", f"the model {self._model_name} has no chat template; send text"
            )
        _check_messages(messages)
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._special_tokens,
            )
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            roles = [message["role"] for message in messages]
            raise InvalidRequest("messages", roles, f"the model's chat template refuses them ({error})") from error


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks what the assistant says, for training; here it is
    just its content."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _check_messages(messages: Sequence[Message]) -> None:
    if not messages:
        raise InvalidRequest("messages", [], "at least one message is needed")
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


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ModelError("tokenizer", str(file), "not a JSON object (truncated or overwritten?)") from error
    return value if isinstance(value, dict) else {}


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which would change what the model reads."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
