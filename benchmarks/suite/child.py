"""One sample in a fresh process: ``python -m suite.child WORKLOAD SYSTEM PARAMS``.

Writes ``result.json`` into the working directory, which the parent made and removes.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any, Final

from suite.plan import BY_NAME, Params

RESULT_FILE: Final = "result.json"
ERROR_FILE: Final = "error.txt"
_STOP_WITHIN_S: Final = 20.0


def main(workload: str, system: str, params_text: str) -> None:
    """Measure, write the result, and only then stop the system, which may take its time."""
    params: Params = json.loads(params_text)
    measure = BY_NAME[workload].measure
    if measure == "head_cpu":
        from suite import scheduler_cost

        _write(scheduler_cost.measure(params))
        return
    from suite.measures import MEASURES
    from suite.systems import CLASSES

    directory = Path.cwd()
    tested = CLASSES[system](directory)
    _write(MEASURES[measure](tested, params))
    # The parent ends whatever is left.
    timer = threading.Timer(_STOP_WITHIN_S, os._exit, (0,))
    timer.daemon = True
    timer.start()
    tested.stop()


def _write(figures: dict[str, Any]) -> None:
    Path(RESULT_FILE).write_text(json.dumps(figures))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        # The log's last line is often about the stop that followed.
        Path(ERROR_FILE).write_text(f"{type(error).__name__}: {error}")
        raise
