"""Speed against transformers: same machine, same checkpoint, same token ids, one table.

    python benchmarks/against_transformers.py            run it alone: about 25 minutes on two cores

The model has the geometry of V2-Lite, cut to 9 layers, with random weights in BF16 (10.4 GB on disk, made
on the first run). Each engine runs in a process of its own, five times, in turn; transformers with each of
its expert implementations, of which the better median counts. Prefill is one prompt of 512 tokens; decode
follows prompts of 64 tokens, greedy, 16 steps. Figures are tokens per second, medians over the runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tiefsee.spec.tensors import CheckpointTensor

Tensors = dict[str, torch.Tensor]
Pack = Callable[[CheckpointTensor, torch.Tensor], Tensors]
PROMPT, PREFILL, STEPS, BATCHES = 64, 512, 16, (1, 8, 16)
WORKERS = ("tiefsee", "transformers grouped_mm", "transformers eager")


def make_checkpoint(
    folder: Path,
    num_layers: int,
    pack: Callable[[CheckpointTensor, torch.Tensor], Tensors] | None = None,
    **fields: Any,
) -> None:
    """Random weights under the published names, one shard per layer; embeddings of order 1 keep tokens apart.

    `pack` says what is stored for a tensor, by name; `fields` go into config.json.
    """
    from safetensors.torch import save_file

    from tiefsee.spec import checkpoint_tensors, model_spec
    from tiefsee.spec.presets import preset_config

    config = {
        **preset_config("v2-lite"), "num_hidden_layers": num_layers, "architectures": ["DeepseekV2ForCausalLM"],
        **fields,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    shards: dict[str, Tensors] = {}
    weight_map: dict[str, str] = {}
    tensors = checkpoint_tensors(model_spec(config))
    for i, t in enumerate(tensors):
        part = t.name.split(".")[1] if t.name.startswith("layers.") else "rest"
        std = 1.0 if t.name == "embed.weight" else t.shape[-1] ** -0.5
        value = torch.ones(t.shape) if t.kind == "norm" else torch.randn(t.shape, generator=generator) * std
        stored = {t.published: value.to(torch.bfloat16)} if pack is None else pack(t, value.to(torch.bfloat16))
        shards.setdefault(part, {}).update(stored)
        weight_map |= dict.fromkeys(stored, f"model-{part}.safetensors")
        following = (
            tensors[i + 1].name.split(".")[1] if i + 1 < len(tensors) and "layers." in tensors[i + 1].name else "rest"
        )
        if following != part and part != "rest":
            save_file(shards.pop(part), folder / f"model-{part}.safetensors", metadata={"format": "pt"})
    save_file(shards.pop("rest"), folder / "model-rest.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))


def token_ids(batch: int, length: int) -> list[list[int]]:
    return torch.randint(0, 100_000, (batch, length), generator=torch.Generator().manual_seed(batch)).tolist()


def measure_tiefsee(folder: Path, tp: int = 1) -> dict[str, float]:
    from tiefsee import LLM, Sampling

    llm = LLM(
        folder, dtype="bfloat16", max_context=1024, max_running=16, max_step_tokens=1024, enable_prefix_cache=False,
        tp=tp,
    )  # fmt: skip
    sampling = Sampling(temperature=0, max_tokens=STEPS + 1, ignore_eos=True)
    figures = {}
    for name, batch, length in [("prefill", 1, PREFILL), *((f"decode {b}", b, PROMPT) for b in BATCHES)]:
        llm.generate(token_ids(1, 8), Sampling(temperature=0, max_tokens=2))
        llm.core.add_all(token_ids(batch, length), [sampling] * batch, lambda index, delta: None)
        times = []
        while llm.core.has_work():
            began = time.perf_counter()
            llm.core.step()
            times.append(time.perf_counter() - began)
        figures[name] = length / times[0] if name == "prefill" else batch / statistics.median(times[1:])
    return figures


@torch.inference_mode()
def measure_transformers(folder: Path, experts: str) -> dict[str, float]:
    from transformers import AutoModelForCausalLM, DynamicCache

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, experts_implementation=experts).eval()
    figures = {}
    model(torch.tensor(token_ids(1, 8)))
    for name, batch, length in [("prefill", 1, PREFILL), *((f"decode {b}", b, PROMPT) for b in BATCHES)]:
        cache, times = DynamicCache(config=model.config), []
        ids = torch.tensor(token_ids(batch, length))
        for _ in range(1 if name == "prefill" else STEPS + 1):
            began = time.perf_counter()
            output = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids = output.logits[:, -1:].argmax(-1)
            times.append(time.perf_counter() - began)
        figures[name] = length / times[0] if name == "prefill" else batch / statistics.median(times[1:])
    return figures


def run_worker(worker: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--folder", str(folder), "--worker", worker]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{worker} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(results: dict[str, list[dict[str, float]]]) -> list[str]:
    lines = [f"{'tokens/s, median (low .. high)':<32}" + "".join(f"{w:>30}" for w in WORKERS) + f"{'ratio':>8}"]
    for figure in results["tiefsee"][0]:
        medians, cells = {}, []
        for worker in WORKERS:
            values = [run[figure] for run in results[worker]]
            medians[worker] = statistics.median(values)
            cells.append(f"{medians[worker]:.2f} ({min(values):.2f} .. {max(values):.2f})")
        peer = max(medians[w] for w in WORKERS if w != "tiefsee")
        lines.append(f"{figure:<32}" + "".join(f"{c:>30}" for c in cells) + f"{medians['tiefsee'] / peer:>7.2f}x")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the checkpoint is, or is made")
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder = options.folder or Path(f"/tmp/tiefsee-bench/v2-lite-{options.layers}-layers")
    if options.worker:
        kind, _, experts = options.worker.partition(" ")
        measured: Any = (
            measure_tiefsee(options.folder) if kind == "tiefsee" else measure_transformers(options.folder, experts)
        )
        print(json.dumps(measured))
        return
    if not (options.folder / "config.json").is_file():
        print("making the checkpoint ..", file=sys.stderr)
        make_checkpoint(options.folder, options.layers)
    results: dict[str, list[dict[str, float]]] = {worker: [] for worker in WORKERS}
    for run in range(options.runs):
        for worker in WORKERS:
            results[worker].append(run_worker(worker, options.folder))
            print(f"run {run + 1}, {worker}: {results[worker][-1]}", file=sys.stderr)
    threads = torch.get_num_threads()
    versions = f"torch {torch.__version__}, transformers {version('transformers')}"
    print(f"{platform.processor() or platform.machine()}, {threads} threads, {versions}")
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
