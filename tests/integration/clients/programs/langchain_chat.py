"""langchain-openai: an answer, a stream, a tool and a structured answer. Arguments: URL MODEL."""

import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Pick(BaseModel):
    """A choice."""

    number: int


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


model = ChatOpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", model=sys.argv[2], temperature=0, max_tokens=200)
answer = model.invoke("Hello")
assert answer.usage_metadata["output_tokens"] > 0, answer
streamed = list(model.stream("Hello"))
assert "".join(chunk.content for chunk in streamed) == answer.content
assert len(streamed) > 2
bound = model.bind_tools([add], tool_choice="add")
called = bound.invoke("What is 1 and 2?")
[call] = called.tool_calls
assert (call["name"], set(call["args"])) == ("add", {"a", "b"}), called
told = model.bind_tools([add]).invoke(
    [HumanMessage("What is 1 and 2?"), called, ToolMessage("3", tool_call_id=call["id"])]
)
assert told.response_metadata["finish_reason"] in ("stop", "length", "tool_calls")
assert isinstance(model.with_structured_output(Pick, method="json_schema").invoke("Pick one."), Pick)
