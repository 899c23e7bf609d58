import json
from datetime import datetime
from pathlib import Path

import pytest

from minedraft.errors import InvalidRequest, ModelError
from minedraft.text.chat_template import ChatTemplate
from minedraft.text.tokenizer import Tokenizer
from tests.support.tiny_models import write_tiny_tokenizer

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INDENTED = """
{{- bos_token }}
{%- for message in messages %}
    {% if loop.index > 9 %}{% break %}{% endif %}
    {%- if message.role == 'assistant' %}
        {% generation %}{{ message | tojson }}{{ eos_token }}{% endgeneration %}
    {%- else %}
        {{ message['content'] | trim }}
    {%- endif %}
{% endfor %}
{{ tools is none }} {{ unk_token }}
"""
CHAT = [
    {"role": "user", "content": " What is <1 & 'two'>? é\n"},
    {"role": "assistant", "content": "Three."},
    {"role": "user", "content": "Why?"},
]
HELLO = [{"role": "user", "content": "hello"}]


def _render(source: str, messages=HELLO) -> str:
    return ChatTemplate(source, {"eos_token": "</s>"}, "m", now=lambda: datetime(2026, 1, 31)).render(messages)


@pytest.mark.slow
@pytest.mark.parametrize("source", [SMOLLM2, INDENTED])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_rendering_is_what_transformers_renders(tmp_path: Path, source: str, add_generation_prompt: bool):
    from transformers import AutoTokenizer

    write_tiny_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(source)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=add_generation_prompt)
    ours = Tokenizer.load(tmp_path)
    assert ours.render_chat(CHAT, add_generation_prompt) == expected
    assert ours.encode_chat(CHAT, add_generation_prompt) == theirs(expected, add_special_tokens=False).input_ids


def test_the_template_is_read_from_either_file_and_the_list_form(tmp_path: Path):
    write_tiny_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    config = {"eos_token": {"content": "<end>"}}
    listed = [
        {"name": "tool_use", "template": "no"},
        {"name": "default", "template": "listed {{ messages[0].content }}{{ eos_token }}"},
    ]
    plain = "plain {{ messages[0].content }}{{ eos_token }}"
    for template, expected in ((plain, "plain hello<end>"), (listed, "listed hello<end>")):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
        assert Tokenizer.load(tmp_path).render_chat(HELLO) == expected
    (tmp_path / "chat_template.jinja").write_text("file {{ messages[0].content }}")
    assert Tokenizer.load(tmp_path).render_chat(HELLO) == "file hello"


def test_a_model_without_a_template_refuses_chat_by_name(tmp_path: Path):
    folder = tmp_path / "base-model"
    write_tiny_tokenizer(folder)
    (folder / "chat_template.jinja").unlink()
    tokenizer = Tokenizer.load(folder)
    with pytest.raises(InvalidRequest, match=r"messages.*base-model has no chat template"):
        tokenizer.render_chat(HELLO)


def test_the_template_can_refuse_messages_and_know_the_date():
    assert _render("{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}") == "31 Jan 2026 hello"
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        _render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize("source", ["constant", "{% for m in messages %}{{ m.text }}{% endfor %}"])
def test_a_template_that_leaves_out_what_messages_say_is_refused(source: str):
    with pytest.raises(InvalidRequest, match="drops the content of messages; send text"):
        _render(source)


def test_a_template_nested_beyond_reason_is_one_error():
    with pytest.raises(ModelError, match="template cannot be read"):
        _render("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages[0].nothing.at_all }}",
        "{{ range(10 ** 9) }}",
        "{{ 1 // 0 }}",
    ],
)
def test_a_template_that_misbehaves_is_an_error_of_the_request(source: str):
    with pytest.raises(InvalidRequest, match="chat template refuses"):
        _render(source)


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "messages"),
        (["hello"], r"messages\[0\]"),
        ([{"role": "user"}], r"messages\[0\].content"),
        ([HELLO[0], {"role": 3, "content": "x"}], r"messages\[1\].role"),
    ],
)
def test_malformed_messages_are_refused_by_field(messages, field: str):
    with pytest.raises(InvalidRequest, match=f"^{field}( is|:) "):
        _render("x", messages)


PARTS_ONLY = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ c['text'] }}{% endfor %}{% endfor %}"
)
EITHER = "{% for m in messages %}{{ m.content if m.content is string else m.content[0].text ~ '!' }}{% endfor %}"
PARTS_AFTER_A_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ messages[1].content[0].text }}"
)
LOWER_PARTS = "{% for m in messages %}{% for c in m.content %}{{ c.text | lower }}{% endfor %}{% endfor %}"
SYSTEM_FIRST = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[1].content }}"
)


@pytest.mark.parametrize(
    ("source", "messages", "expected"),
    [
        (PARTS_ONLY, HELLO, "user: hello"),
        (EITHER, HELLO, "hello"),
        ("{{ messages[0].content[0].text }}", HELLO, "hello"),
        ("{{ messages[0].content.strip() }}", HELLO, "hello"),
        (SYSTEM_FIRST, [{"role": "system", "content": "be brief"}, *HELLO], "hello"),
        (PARTS_AFTER_A_SYSTEM, [{"role": "system", "content": "be brief"}, *HELLO], "hello"),
        (LOWER_PARTS, [{"role": "user", "content": "HELLO"}], "hello"),
    ],
)
def test_content_comes_in_the_form_that_the_template_reads(source: str, messages, expected: str):
    assert _render(source, messages) == expected


def test_a_template_with_a_syntax_error_is_the_models_fault():
    with pytest.raises(ModelError, match="chat_template"):
        _render("{% if %}")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{% if %}"])
def test_a_template_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes):
    write_tiny_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(content)
    with pytest.raises(ModelError, match=r"chat_template is '.*chat_template\.jinja': "):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_that_cannot_be_read_names_its_file(tmp_path: Path):
    with pytest.raises(ModelError, match=r"tokenizer\.json.*no such file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": 1')
    with pytest.raises(ModelError, match=r"tokenizer\.json.*cannot be read"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("eos_token", ["<|im_start|>", {"content": "<|im_start|>"}])
def test_the_tokenizers_own_end_token_ends_answers_too(tmp_path: Path, eos_token: object):
    write_tiny_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": 0, "vocab_size": 320}')
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos_token}))
    assert Tokenizer.load(tmp_path).eos_ids == (0, 1)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<no such token>"}')
    assert Tokenizer.load(tmp_path).eos_ids == (0,)
    (tmp_path / "config.json").write_text('{"eos_token_id": [0, 320], "vocab_size": 320}')
    with pytest.raises(ModelError, match=r"config.json': eos_token_id 320 .*\[0, 320\)"):
        Tokenizer.load(tmp_path)


def test_a_text_that_begins_with_the_bos_has_one(tmp_path: Path):
    write_tiny_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    plain = Tokenizer.load(tmp_path)
    assert plain.encode("<|im_start|>the") == [1, *plain.encode("the")]
    template = [{"SpecialToken": {"id": token, "type_id": 0}} for token in ("<|endoftext|>", "<|im_start|>")]
    processor = {
        "type": "TemplateProcessing",
        "single": [*template, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            token: {"id": token, "ids": [i], "tokens": [token]}
            for i, token in enumerate(("<|endoftext|>", "<|im_start|>"))
        },
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": processor}))
    tokenizer = Tokenizer.load(tmp_path)
    the = plain.encode("the")
    assert tokenizer.encode("the") == tokenizer.encode("<|endoftext|><|im_start|>the") == [0, 1, *the]
    assert tokenizer.encode("<|im_start|>the") == [0, 1, 1, *the]
    assert tokenizer.encode("<|endoftext|><|im_start|>the", add_special_tokens=False) == [0, 1, *the]


def test_a_stop_string_with_a_special_token_in_it_is_that_token_or_refused(tmp_path: Path):
    write_tiny_tokenizer(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.stop_ids(("END", "<|im_end|>", "<|im_", "<|im_start|>")) == (2, 1)
    with pytest.raises(InvalidRequest, match=r"stop is .*special token <\|im_end\|> .*use stop_token_ids 2"):
        tokenizer.stop_ids(("\n<|im_end|>",))


def test_encoding_ignores_a_length_the_file_was_saved_with(tmp_path: Path):
    write_tiny_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    settings = json.loads(file.read_text())
    settings["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    file.write_text(json.dumps(settings))
    assert len(Tokenizer.load(tmp_path).encode("one two three four")) > 2
