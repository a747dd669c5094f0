"""Run a Python module, or any command, on the emulated CANN.

python -m tests.fakecann [--soc NAME] [--devices N] [--trace FILE] -m MODULE ARGUMENT ..
python -m tests.fakecann [..] -- COMMAND ARGUMENT ..
python -m tests.fakecann --print-environment       # for `eval`, in a shell
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from .build import missing
from .environment import environment


def main(arguments: list[str]) -> None:
    own, command = split_arguments(arguments)
    parser = argparse.ArgumentParser(prog="fakecann", usage=__doc__)
    parser.add_argument("--soc", default="Ascend910B3", help="chip, as CANN names it: Ascend910B3, Ascend910_9391, ..")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--device-bytes", type=int, default=64_000_000_000)
    parser.add_argument("--trace", type=Path, help="write every aclnn call to this file, a line each")
    parser.add_argument("--print-environment", action="store_true")
    options = parser.parse_args(own)
    if (reason := missing()) is not None:
        raise SystemExit(f"fakecann: {reason}")
    variables = environment(
        options.soc, devices=options.devices, device_bytes=options.device_bytes, trace=options.trace
    )
    if options.print_environment:
        changed = {k: v for k, v in variables.items() if os.environ.get(k) != v}
        print("\n".join(f"export {k}={shlex.quote(v)}" for k, v in changed.items()))
        return
    if not command:
        parser.error("nothing to run: give -m MODULE, or -- and a command")
    os.execvpe(command[0], command, variables)


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Our own options, and the command behind `-m` or `--`, which is not looked into."""
    for place, word in enumerate(arguments):
        if word == "-m":
            return arguments[:place], [sys.executable, *arguments[place:]]
        if word == "--":
            return arguments[:place], arguments[place + 1 :]
    return arguments, []


if __name__ == "__main__":
    main(sys.argv[1:])
