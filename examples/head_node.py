"""The head node's own client, in an asyncio program.

It needs a head and a worker that offers the functions: see functions.py.

    python head_node.py [HOST] [PORT]
"""

import asyncio
import sys

from rustray import HeadNode, ResourceRequirements, TaskSpec


async def main(host: str, port: int) -> None:
    async with HeadNode(host, port) as head:
        task_id = await head.submit_task(
            TaskSpec(
                function_name="matrix_multiply",
                args=[20, 10],
                resource_requirements=ResourceRequirements(cpu_cores=1, memory_mb=64),
            )
        )
        result = await head.get_task_result(task_id, timeout_s=60)
        assert result is not None
        print(len(result.unwrap()), "rows, from worker", result.worker_id)

        specs = [TaskSpec("greet", [name], {"polite": True}) for name in ("Ada", "Grace")]
        for task_id in await head.submit_tasks_batch(specs):
            result = await head.get_task_result(task_id, timeout_s=60)
            assert result is not None
            print(result.unwrap())

        events = head.subscribe(functions=["resize"])
        following = asyncio.create_task(anext(events))
        status = await head.get_status()
        print(status.workers, "worker(s),", status.strategy)
        await head.submit_task(TaskSpec("resize", ["picture.png"], {"width": 640}))
        event = await asyncio.wait_for(following, 60)
        print("event:", event.function, event.state.name.lower())
        await events.aclose()


asyncio.run(
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1", int([*sys.argv, "8000", "8000"][2]))
)
