"""Run a Python module, or any command, on the emulated CANN.

python -m tests.fakecann [--soc NAME] [--devices N] [--trace FILE] -m MODULE ARGUMENT ..
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="fakecann", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--soc", default="Ascend910B3", help="chip, as CANN names it: Ascend910B3, Ascend910_9391, ..")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--device-bytes", type=int, default=64_000_000_000)
    parser.add_argument("--trace", type=Path, help="write every aclnn call to this file, a line each")
    parser.add_argument("--print-environment", action="store_true")
    parser.add_argument("-m", dest="module", help="module to run, with the arguments that follow")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if (reason := missing()) is not None:
        raise SystemExit(f"fakecann: {reason}")
    variables = environment(
        options.soc, devices=options.devices, device_bytes=options.device_bytes, trace=options.trace
    )
    if options.print_environment:
        changed = {k: v for k, v in variables.items() if os.environ.get(k) != v}
        print("\n".join(f"export {k}={shlex.quote(v)}" for k, v in changed.items()))
        return
    command = [sys.executable, "-m", options.module, *options.command] if options.module else options.command
    if not command:
        parser.error("nothing to run: give -m MODULE or a command")
    os.execvpe(command[0], command, variables)


if __name__ == "__main__":
    main()
