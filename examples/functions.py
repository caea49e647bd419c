"""Functions that workers offer by name: no code and no pickle crosses the network.

Start a head and a worker that offers them, from the folder of this file:

    rustray head
    PYTHONPATH=. rustray worker --functions functions

Then call them: see head_node.py, or ``rustray submit matrix_multiply 100 100 --wait``.
"""

from typing import Any

import rustray


@rustray.function
def matrix_multiply(rows: int, cols: int) -> list[list[float]]:
    """Multiply a matrix of row numbers with its transpose."""
    matrix = [[float(r + c) for c in range(cols)] for r in range(rows)]
    return [[sum(a * b for a, b in zip(x, y, strict=True)) for y in matrix] for x in matrix]


@rustray.function("greet", executor="thread")
def greeting(name: str, *, polite: bool = False) -> str:
    """Greet somebody."""
    return f"Good day, {name}." if polite else f"Hi {name}!"


class Resize(rustray.TaskExecutor):
    """The class form: one instance per executor process, made at its first task."""

    function_name = "resize"

    def __init__(self) -> None:
        self.calls = 0

    async def execute(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Pretend to resize a picture."""
        self.calls += 1
        return {"path": args[0], "width": kwargs.get("width", 100), "calls": self.calls}
