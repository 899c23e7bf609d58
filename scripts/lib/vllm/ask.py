"""`python ask.py SOCKET PROMPT`: asks a server through the OpenAI client, and prints the answer as it comes.

It runs in vLLM's environment, where that client is, and imports nothing of this project.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Ask, and print."""
    import httpx
    from openai import OpenAI

    socket, prompt = sys.argv[1:3]
    http = httpx.Client(transport=httpx.HTTPTransport(uds=socket), timeout=120.0)
    with OpenAI(base_url="http://vllm/v1", api_key="none", http_client=http) as client:
        chunks = client.chat.completions.create(
            model="peer",
            messages=[{"role": "user", "content": prompt}],
            max_completion_tokens=48,
            temperature=0.0,
            stream=True,
        )
        for chunk in chunks:
            for choice in chunk.choices:
                sys.stdout.write(choice.delta.content or "")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
