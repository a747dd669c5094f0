"""What this machine's CPU can do, measured with numpy, as a `Chip` of the catalogue's form.

    arithmetic   FP32 product of two square matrices in numpy's BLAS, all its threads: 2 n^3 FLOP
    bandwidth    c = a + b on arrays far beyond the caches, one thread per core (STREAM's add: 3 arrays, a write
                 counts once)
    launch       an addition of 64 numbers: what an operator costs that does next to nothing
    memory       what the operating system says

Each is the median of its trials; low and high hold 80 % of them. Other work on the machine lowers the figures and
widens the range; how much of the machine the products got is noted.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tiefsee.errors import ConfigError, DeviceError
from tiefsee.hardware import Chip, Figure, Link

# Size of the square matrices (17 GFLOP a product) and bytes of an array; and of those of a hasty measurement.
SIZE, ARRAY_BYTES = 2048, 256_000_000
HASTY_S, HASTY_SIZE, HASTY_ARRAY_BYTES = 5.0, 512, 64_000_000
_LEAST_TRIALS, _MOST_TRIALS = 5, 10_000
_SMALL_OPS = 2_000  # a trial of the small operator is so many
_LATENCY_S = (200e-9, 50e-9, 1e-6)  # from core to core of one machine; not measured


@dataclass(frozen=True)
class Trials:
    """Seconds of each trial, and how many cores the process kept busy meanwhile."""

    seconds: tuple[float, ...]
    busy_cores: float

    def figure(self, amount: float, unit: str, source: str, what: str) -> Figure:
        """`amount` per second, or seconds per `amount` where the unit is seconds: the median, and 80 % around it."""
        import numpy as np

        rates = [s / amount if unit == "s" else amount / s for s in self.seconds]
        low, value, high = (float(f"{x:.3g}") for x in np.percentile(rates, (10, 50, 90)))
        return Figure(value, unit, "measured", source, low, high, f"{what}, {len(rates)} trials")


def measure_cpu(
    seconds: float = 20.0,
    *,
    size: int | None = None,
    array_bytes: int | None = None,
    bf16_product: Callable[[int], Callable[[], object]] | None = None,
) -> Chip:
    """This machine as a chip named cpu; takes about `seconds`, with smaller matrices and arrays below five.

    `bf16_product(n)` makes a job that multiplies two n x n BF16 matrices once; without it the chip has FP32 only,
    since numpy has no BF16. Raises ConfigError, and DeviceError where the arrays do not fit.
    """
    if not 0.05 <= seconds <= 3600:
        raise ConfigError(f"the measurement shall take {seconds:g} s; needed is 0.05 to 3600")
    size = size or (SIZE if seconds >= HASTY_S else HASTY_SIZE)
    array_bytes = array_bytes or (ARRAY_BYTES if seconds >= HASTY_S else HASTY_ARRAY_BYTES)
    memory = total_memory_bytes()
    if 3 * array_bytes > memory / 2:
        raise DeviceError(f"this machine has {memory / 1e9:.1f} GB; the measurement needs {6 * array_bytes / 1e9:.1f}")
    source = _source()
    parts = 4 if bf16_product is not None else 3
    products = {"fp32": repeat(_product(size), seconds / parts)}
    if bf16_product is not None:
        products["bf16"] = repeat(bf16_product(size), seconds / parts)
    stream = repeat(_addition(array_bytes), seconds / parts)
    launch = repeat(_small_additions, seconds / parts / 2)
    bandwidth = stream.figure(3 * (array_bytes // 4 * 4), "bytes/s", source, f"c = a + b of {array_bytes / 1e6:.0f} MB")
    latency = Figure(_LATENCY_S[0], "s", "estimate", "usual between the cores of a machine", *_LATENCY_S[1:])
    return Chip(
        name="cpu",
        title=f"{cpu_model()}, {num_cores()} cores",
        vendor="cpu",
        per="package",
        dies=1,
        aliases=(),
        flops_per_s={
            name: trials.figure(2.0 * size**3, "flops/s", source, f"{size} x {size}")
            for name, trials in products.items()
        },
        memory_bytes=Figure(memory, "bytes", "measured", source, memory, memory, "all that the system has"),
        memory_bytes_per_s=bandwidth,
        links=(Link("node", "its own memory", bandwidth, latency, 1),),
        chips_per_node=1,
        available="",
        launch_s=launch.figure(_SMALL_OPS, "s", source, "64 numbers"),
        notes=tuple(_contention(name, trials.busy_cores) for name, trials in products.items()),
    )  # fmt: skip


def repeat(job: Callable[[], object], seconds: float) -> Trials:
    """Runs a job once to warm up, then until the seconds are over, but at least five times."""
    job()
    times: list[float] = []
    busy, began = time.process_time(), time.perf_counter()
    while len(times) < _LEAST_TRIALS or (time.perf_counter() - began < seconds and len(times) < _MOST_TRIALS):
        started = time.perf_counter()
        job()
        times.append(time.perf_counter() - started)
    wall = time.perf_counter() - began
    return Trials(tuple(times), (time.process_time() - busy) / wall)


def num_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory_bytes() -> float:
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def cpu_model() -> str:
    """ "AMD EPYC (family 25, model 17)": the family tells generations apart whose name does not."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    facts = dict(re.findall(r"(?m)^(model name|cpu family|model)\s*:\s*(.+?)\s*$", text))
    name = facts.get("model name") or platform.processor() or platform.machine() or "unknown CPU"
    family = f" (family {facts['cpu family']}, model {facts['model']})" if {"cpu family", "model"} <= set(facts) else ""
    return name + family


def _source() -> str:
    import numpy as np

    try:
        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        library = f"{blas['name']} {blas['version']}"
    except (KeyError, TypeError):
        library = "an unknown BLAS"
    return (
        f"measured by tiefsee chips measure on {cpu_model()}, {num_cores()} cores, {datetime.date.today()}, "
        f"numpy {np.__version__}, {library}"
    )


def _contention(name: str, busy_cores: float) -> str:
    """What other work took while the products ran: the reader must know whether the machine was quiet."""
    cores = num_cores()
    text = f"{name}: its products kept {busy_cores:.1f} of {cores} cores busy"
    return text if busy_cores > 0.9 * cores else f"{text}: other work or a limit of threads kept it from the rest"


def _product(size: int) -> Callable[[], object]:
    import numpy as np

    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((size, size), dtype=np.float32) for _ in range(2))
    out = np.empty((size, size), np.float32)
    return lambda: np.matmul(a, b, out=out)


def _addition(array_bytes: int) -> Callable[[], object]:
    """c = a + b, each core its part; every page is touched beforehand by the core that will use it."""
    import numpy as np

    length = array_bytes // 4
    arrays = [np.empty(length, np.float32) for _ in range(3)]
    cores = num_cores()
    parts = [slice(i * length // cores, (i + 1) * length // cores) for i in range(cores)]
    pool = ThreadPoolExecutor(cores)

    def over(job: Callable[[slice], object]) -> Sequence[object]:
        return list(pool.map(job, parts))

    for array in arrays:
        over(lambda part, array=array: array[part].fill(1.0))  # type: ignore[misc]
    return lambda: over(lambda part: np.add(arrays[0][part], arrays[1][part], out=arrays[2][part]))


def _small_additions() -> None:
    import numpy as np

    a, out = np.ones(64, np.float32), np.empty(64, np.float32)
    for _ in range(_SMALL_OPS):
        np.add(a, a, out=out)
