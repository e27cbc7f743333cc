"""`polymodal`: the command line. Commands live in `pipelines/commands/`; this file runs them.

Exit code 0: done. 2: the user's mistake, told in one line. 1: a defect. 75: a run was stopped by a signal and saved (`base/endings.py`).
Tracebacks only with `--debug`.
"""

from __future__ import annotations

import errno
import importlib
import pkgutil
import re
import sys
from collections.abc import Sequence
from functools import cache

import typer

from . import commands
from .base.endings import done, leave_sign, withdraw_sign
from .base.redact import redact

app = typer.Typer(name="polymodal", no_args_is_help=True, rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False,
                  context_settings={"help_option_names": ["-h", "--help"]},
                  help="Pretrain, evaluate, convert and use every classic text, vision and vision-language system.")


@app.callback()
def _root(debug: bool = typer.Option(False, "--debug", help="Show tracebacks.")) -> None: ...


@cache
def _register() -> None:
    """Let each module of `commands` add its own commands, in the order of its `ORDER`."""
    modules = [importlib.import_module(f"{commands.__name__}.{m.name}") for m in pkgutil.iter_modules(commands.__path__)]
    for module in sorted(modules, key=lambda m: m.ORDER):
        module.register(app)


def invoke(arguments: Sequence[str]) -> int:
    """Run one command line in this process; errors are raised. Returns the exit code that the command asked for."""
    _register()
    result = app(list(arguments), prog_name="polymodal", standalone_mode=False)
    return result if isinstance(result, int) else 0


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; errors are told in one line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    # `--debug` may stand anywhere
    arguments = [*(["--debug"] if debug else []), *(a for a in arguments if a != "--debug")]
    withdraw_sign(done())
    try:
        code = invoke(arguments)
        if code == 0:
            leave_sign(done())
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:
        leave_sign("failed")
        if debug:
            raise
        code, line = _explain(error)
        print(redact(line), file=sys.stderr)
        return code


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and the one line that tells a person what happened."""
    from ..shared.errors import UserError

    if isinstance(error, UserError):
        return 2, f"error: {' '.join(str(error).split())}"
    if type(error).__name__ == "NoArgsIsHelpError":  # a command without its subcommand: the help itself
        return 2, error.format_message()  # type: ignore[attr-defined]
    if hasattr(error, "format_message"):  # click's and typer's usage errors
        return 2, f"error: {' '.join(error.format_message().split())}; see `polymodal --help`"  # type: ignore[attr-defined]
    if isinstance(error, OSError):
        path = f" {error.filename!r}" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return 2, f"error: no space left on the device while writing{path}: free some space and run the command again"
        if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)) or error.errno == errno.EROFS:
            return 2, f"error: {error.strerror or error}:{path}: check the path and its permissions"
    if re.search(r"gloo/transport|NCCL error|ncclRemoteError", str(error)):
        return 1, ("error: the contact with another rank broke: that rank ended first, and its own lines say why; the same command "
                   "goes on from the newest checkpoint (--debug shows the traceback)")
    return 1, f"internal error: {type(error).__name__}: {error} (run again with --debug for the traceback)"


def main() -> None:
    """The console script's entry point."""
    sys.exit(run())


if __name__ == "__main__":
    main()
