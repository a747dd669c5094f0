"""Make the libraries of CANN that an installed torch_npu asks for, from its own symbol tables.

Nothing is written down by hand that the wheel can tell: which `acl*` and `Hccl*` symbols it leaves undefined, which
libraries it names, and which `aclnn*` calls its code contains. Every function that runtime.c and hccl.c do not define
becomes one that returns 0; every aclnn call becomes a trampoline into opapi.c. Built once per wheel into a cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

SOURCES = Path(__file__).parent
TOOLS = ("gcc", "nm", "readelf", "strings")
# What CANN's C interfaces are called; all else that is undefined comes from libc or torch.
CANN_SYMBOL = re.compile(r"(acl|rt[A-Z]|Hccl|Msprof|ge|_ZN2ge|aml)")
CANN_LIBRARY = re.compile(r"\(NEEDED\).*\[(lib(?:hccl|ascendcl|acl_\w+|ge_\w+|graph)\.so)\]")
PLAN_SUFFIX = "GetWorkspaceSize"


def missing() -> str | None:
    """Why CANN cannot be emulated here, in words; None where it can."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return f"the trampolines are for Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)} (gcc and binutils)"
    if importlib.util.find_spec("torch_npu") is None:
        return "torch_npu is not installed (pip install torch-npu==2.13.0 beside torch 2.13.0)"
    return None


def build() -> Path:
    """The folder with the libraries, for LD_LIBRARY_PATH; made when it is not there yet."""
    wheel = _package("torch_npu")
    folder = _cache() / _fingerprint(wheel / "lib" / "libtorch_npu.so")
    if (folder / "done").exists():
        return folder
    part = folder.with_name(f"{folder.name}.{os.getpid()}")
    part.mkdir(parents=True)
    binaries = [wheel / "lib" / n for n in ("libtorch_npu.so", "libtensorpipe.so", "libnpu_profiler.so")]
    binaries = [b for b in [*binaries, *wheel.glob("_C*.so")] if b.exists()]
    _build_runtime(part, binaries)
    _build_opapi(part, aclnn_names(wheel / "lib" / "libtorch_npu.so"))
    (part / "done").touch()
    try:
        part.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(part)
    return folder


def aclnn_names(library: Path) -> list[str]:
    """Every aclnn operator that the wheel may call."""
    found = re.findall(rf"^(aclnn[A-Z]\w*){PLAN_SUFFIX}$", _run("strings", "-n", "6", library), re.MULTILINE)
    return sorted(set(found))


def undefined_symbols(binaries: Iterable[Path]) -> list[str]:
    """CANN's symbols that the binaries use and neither they nor torch define."""
    wanted = {s for b in binaries for s in _symbols("--undefined-only", b)}
    torch_libraries = (_package("torch") / "lib").glob("*.so")
    defined = {s for b in (*binaries, *torch_libraries) for s in _symbols("--defined-only", b)}
    return sorted(s for s in wanted - defined if CANN_SYMBOL.match(s))


def _build_runtime(folder: Path, binaries: list[Path]) -> None:
    """libascendcl with everything in it; the other libraries are empty and depend on it."""
    written = [SOURCES / "runtime.c", SOURCES / "hccl.c"]
    defined = {
        m for file in written for m in re.findall(r"^EXPORT [\w \*]*?\*?(\w+)\(", file.read_text(), re.MULTILINE)
    }
    stubs = folder / "stubs.c"
    names = (s for s in undefined_symbols(binaries) if s not in defined)
    stubs.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in names))
    main = folder / "libascendcl.so"
    _compile(main, stubs, *written)
    needed = {n for b in binaries for n in CANN_LIBRARY.findall(_run("readelf", "-d", b))}
    for name in sorted(needed - {main.name}):
        _compile(folder / name, "-Wl,--no-as-needed", "-x", "c", "/dev/null", "-x", "none", main)


def _build_opapi(folder: Path, names: list[str]) -> None:
    lines = [".text", (SOURCES / "entry.s").read_text()]
    for index, name in enumerate(names):
        lines += [f".text\n.globl {name}{PLAN_SUFFIX}\n.type {name}{PLAN_SUFFIX},@function"]
        lines += [f"{name}{PLAN_SUFFIX}:\n    movl ${index}, %eax\n    jmp fakecann_entry"]
        lines += [f".globl {name}\n.type {name},@function\n{name}:\n    jmp fakecann_run@PLT"]
    (folder / "trampolines.s").write_text("\n".join(lines) + "\n")
    table = ",\n    ".join(f'"{name}"' for name in names)
    (folder / "names.c").write_text(
        f"const char *const fakecann_names[] = {{\n    {table}\n}};\nconst int fakecann_num_names = {len(names)};\n"
    )
    _compile(folder / "libopapi.so", SOURCES / "opapi.c", folder / "names.c", folder / "trampolines.s", "-ldl")


def _compile(output: Path, *inputs: Path | str) -> None:
    command = ["gcc", "-shared", "-fPIC", "-O1", "-w", f"-Wl,-soname,{output.name}", "-o", str(output)]
    done = subprocess.run([*command, *map(str, inputs)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"gcc could not build {output.name}:\n{done.stderr}")


def _symbols(kind: str, binary: Path) -> set[str]:
    lines = _run("nm", "-D", kind, binary).splitlines()
    return {line.split()[-1].split("@")[0] for line in lines if line.strip()}


def _run(*command: object) -> str:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True).stdout


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"{name} is not installed in this Python")
    return Path(spec.submodule_search_locations[0])


def _fingerprint(library: Path) -> str:
    """Of the wheel and of our sources: a change of either builds anew."""
    digest = hashlib.sha256(f"{library} {library.stat().st_size} {library.stat().st_mtime_ns}".encode())
    for file in sorted([*SOURCES.glob("*.c"), SOURCES / "entry.s", SOURCES / "build.py"]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _cache() -> Path:
    base = os.environ.get("FAKECANN_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fakecann"
