"""Entry of the command ``rustray``: what runs, and how every error ends.

A mistake of the user's is a sentence on stderr (with ``--json``: one value on stdout) and an
exit code, never a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from rustray.cli import exits, flags
from rustray.common.errors import ConfigError, InvariantError, RustRayError, UsageProblem


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit with its code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_missing_streams()
    code = run(arguments)
    sys.exit(_flush(code))


def run(argv: list[str]) -> int:
    """Run a command line and return its exit code; every error has been reported."""
    as_json = "--json" in _before_free_arguments(argv)
    try:
        _refuse_token(argv)
        return _dispatch(argv)
    except RustRayError as error:
        return _report(error.code, str(error), exits.exit_code_of(error), as_json)
    except (KeyboardInterrupt, EOFError):
        return _report("INTERRUPTED", "interrupted", exits.INTERRUPTED, as_json)
    except BrokenPipeError:
        return exits.BROKEN_PIPE
    except Exception as error:  # the last line of defence: a bug, shown as one
        return _report_unexpected(error, as_json)


def _dispatch(argv: list[str]) -> int:
    if argv and argv[0] in flags.TABLES:
        parsed = flags.parse(argv[0], argv[1:])
        if parsed is not None:
            from rustray.cli import serve

            return serve.run(argv[0], parsed)
    from rustray.cli.app import app

    try:
        # The exit code of a command that ended by `typer.Exit`, else the command's return value.
        code = app(args=argv, prog_name="rustray", standalone_mode=False)
    except Exception as error:
        message = _usage_message(error)
        if message is None:
            raise
        raise UsageProblem(message) from None
    except SystemExit as left:
        if isinstance(left.__context__, BrokenPipeError):  # the framework calls that a failure
            raise left.__context__ from None
        raise
    if code == exits.INTERRUPTED:  # the framework has swallowed the Ctrl-C
        raise KeyboardInterrupt
    return code if isinstance(code, int) else exits.OK


def _usage_message(error: Exception) -> str | None:
    # The framework has its own copy of click or not, depending on its version, so that its
    # errors are known by their shape.
    if type(error).__name__ == "Abort":
        raise KeyboardInterrupt from None
    shape: Any = error
    if not hasattr(shape, "format_message") or not hasattr(shape, "exit_code"):
        return None
    context = getattr(shape, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        return f"a command is missing\n{shape.format_message()}".rstrip()
    command = context.command_path if context is not None else "rustray"
    return f"{shape.format_message()}\nsee: {command} --help"


def _refuse_token(argv: Sequence[str]) -> None:
    for argument in _before_free_arguments(argv):
        if argument == "--token" or argument.startswith("--token="):
            raise UsageProblem(
                "a token on the command line can be read by everybody on this machine (ps): put "
                "it into a file and name it with --token-file or RUSTRAY_TOKEN_FILE, or set "
                "RUSTRAY_TOKEN"
            )


def _before_free_arguments(argv: Sequence[str]) -> Sequence[str]:
    return argv[: argv.index("--")] if "--" in argv else argv


def _report(code: str, message: str, exit_code: int, as_json: bool) -> int:
    from rustray.cli.output import Output, dumps, write_line

    try:
        if as_json:
            write_line(dumps({"error": {"code": code, "message": message}}))
        else:
            Output().note(f"error: {message}")
    except BrokenPipeError:
        return exits.BROKEN_PIPE
    return exit_code


def _report_unexpected(error: Exception, as_json: bool) -> int:
    if isinstance(error, OSError):
        return _report(ConfigError.code, str(error), exits.TASK_FAILED, as_json)
    import traceback

    message = f"a bug in rustray, please report it: {type(error).__name__}: {error}"
    code = _report(InvariantError.code, message, exits.TASK_FAILED, as_json)
    if sys.stderr is not None:
        traceback.print_exception(error)
    return code


def _open_missing_streams() -> None:
    # `rustray ... >&-` starts without a stdout; the next file opened would become it.
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            descriptor = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(descriptor, mode))


def _flush(code: int) -> int:
    try:
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        # What is still buffered cannot be written either: keep the interpreter from trying.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return exits.BROKEN_PIPE if code == exits.OK else code
    return code


if __name__ == "__main__":
    main()
