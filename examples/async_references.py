"""References in an asyncio program: await them, gather them, put a timeout around them."""

import asyncio
import time

import rustray


@rustray.remote
def slow_square(x: int, seconds: float) -> int:
    time.sleep(seconds)
    return x * x


async def main() -> None:
    print(await slow_square.remote(3, 0.01))
    print(await asyncio.gather(*[slow_square.remote(i, 0.01) for i in range(5)]))
    try:
        async with asyncio.timeout(0.2):
            await slow_square.remote(4, 60)
    except TimeoutError:
        print("too slow: the task has been cancelled")


with rustray.init():
    asyncio.run(main())
