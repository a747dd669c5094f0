"""What sharing a model costs on one machine: N ranks with their part of the threads, against one process with all.

    python benchmarks/ranks.py [--tp 2] [--layers 4] [--repeats 5]

The model has the geometry of V2-Lite, cut to a few layers, with random weights in BF16 (made on the first run). Each
engine runs in processes of its own, in turn. Prefill is one prompt of 512 tokens; decode follows prompts of 64 tokens,
greedy, 16 steps. Figures are tokens per second, medians over the runs with the lowest and highest. On a CPU the ranks
share its memory's bandwidth, so at best they lose nothing; what is lost are the sums through gloo.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from against_transformers import make_checkpoint, measure_tiefsee


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    folder = Path(f"/tmp/tiefsee-bench/v2-lite-{options.layers}-layers")
    if options.measure:
        print(json.dumps(measure_tiefsee(folder, tp=options.measure)))
        return
    if not (folder / "config.json").is_file():
        make_checkpoint(folder, options.layers)
    runs: dict[int, list[dict[str, float]]] = {1: [], options.tp: []}
    for _ in range(options.repeats):
        for tp, figures in runs.items():
            command = [sys.executable, __file__, "--measure", str(tp), "--layers", str(options.layers)]
            figures.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads in all, {options.layers} layers, tokens/s")
    for name in runs[1][0]:
        one, shared = ([figures[name] for figures in runs[tp]] for tp in runs)
        ratio = statistics.median(shared) / statistics.median(one)
        print(f"{name:<12} 1 rank {spread(one)}   {options.tp} ranks {spread(shared)}   {ratio:.2f}x")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):7.1f} ({min(values):.1f} .. {max(values):.1f})"


if __name__ == "__main__":
    main()
