"""Peak host memory of a load: the loaded model and one tensor more.

    python benchmarks/load_memory.py FOLDER [--format keep|bf16|fp32|int8]

A fresh process imports everything, notes its resident memory, loads, and reads its peak (VmHWM). Pages of
the mapped file count as resident while their tensor is read, so they are in the figure.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tiefsee.checkpoint import load_network
from tiefsee.files import find_model
from tiefsee.model import Network
from tiefsee.ops import operators_for
from tiefsee.spec import model_spec


def status(field: str) -> float:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--format", default="keep")
    options = parser.parse_args()
    files = find_model(options.folder)
    spec, device = model_spec(files.config), torch.device("cpu")
    dtype = torch.float32 if options.format == "fp32" else torch.bfloat16
    with torch.device("meta"):
        network = Network(spec, operators_for(device))
    largest = max(entry.num_bytes for entry in files.tensors.values())
    before = status("VmRSS")
    report = load_network(network, spec, files, device=device, dtype=dtype, format=options.format)
    peak = status("VmHWM") - before
    over = peak - report.num_bytes
    print(f"loaded {report.num_bytes / 1e9:.3f} GB as {options.format}; peak {peak / 1e9:.3f} GB above the start")
    print(f"that is {over / 1e9:.3f} GB over the model; the largest tensor on disk has {largest / 1e9:.3f} GB")


if __name__ == "__main__":
    main()
