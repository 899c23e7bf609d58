"""A client process with many streams, to be killed: `python -m scripts.lib.chaos.crowd ADDRESS NUM_STREAMS`.

It prints HERE when each of its streams has a first token, and then reads on until its answers end.
"""

from __future__ import annotations

import asyncio
import sys

from minedraft import AsyncClient, SamplingParams

HERE = "every stream has begun"
MAX_NEW = 256


async def main(address: str, num_streams: int) -> None:
    """Open the streams and read them to their end."""
    begun: set[int] = set()

    async def read(client: AsyncClient, number: int) -> None:
        params = SamplingParams(max_new_tokens=MAX_NEW, ignore_eos=True, temperature=0.8)
        async for piece in client.generate([5, 6, 7 + number % 50], params):
            if piece.token_ids and number not in begun:
                begun.add(number)
                if len(begun) == num_streams:
                    print(HERE, flush=True)

    async with AsyncClient(address) as client:
        await asyncio.gather(*(read(client, number) for number in range(num_streams)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
