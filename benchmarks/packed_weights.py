"""What a step costs with FP8, FP4 and INT8 weights that stay packed, to the same step in BF16: CPU-seconds, one thread.

    python benchmarks/packed_weights.py                  about 10 minutes; 10 GB of disk, 12 of memory

The model has the geometry of V2-Lite, cut to 4 of 27 layers, and so has its vocabulary, which is read in BF16 in every
format. FP8 is V3's (blocks of 128 x 128, float32 scales), FP8 + FP4 is V4's (ue8m0 scales, experts in FP4), INT8 is
converted at load. All four are held in one process and measured in turn; decode follows prompts of 64 tokens. Figures
are medians over all steps of all runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
from against_transformers import PREFILL, PROMPT, Tensors, make_checkpoint, token_ids

from tiefsee import LLM, Sampling
from tiefsee.ops import formats
from tiefsee.spec.tensors import CheckpointTensor

LAYERS, STEPS = 4, 16
VOCABULARY = 102_400 * LAYERS // 27
FORMATS = ("BF16", "FP8", "FP8 + FP4", "INT8")
FIGURES = [("decode, batch 1", 1, PROMPT), ("decode, batch 8", 8, PROMPT), ("decode, batch 32", 32, PROMPT)]
FIGURES += [(f"prefill {PREFILL}", 1, PREFILL)]


def pack(v4: bool, tensor: CheckpointTensor, value: torch.Tensor) -> Tensors:
    """What a release of V3 or of V4 stores for a tensor."""
    if tensor.kind != "linear":
        return {tensor.published: value}
    if v4 and tensor.expert is not None:
        codes, scale = formats.pack_fp4(value)
    else:
        codes, scale = formats.pack_fp8(value, (128, 128), ue8m0=v4)
    name = tensor.published.removesuffix(".weight") + ".weight_scale_inv"
    return {tensor.published: codes, name: formats.encode_ue8m0(scale) if v4 else scale}


def folder_of(format: str, root: Path) -> Path:
    """The checkpoint to load for a format, made if it is not there."""
    kind = {"INT8": "BF16"}.get(format, format)
    folder = root / f"v2-lite-{LAYERS}-layers-{kind.lower().replace(' + ', '-')}"
    if not (folder / "config.json").is_file():
        print(f"making the checkpoint in {kind} ..", file=sys.stderr)
        fields = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}
        if kind == "BF16":
            make_checkpoint(folder, LAYERS, **fields)
        else:
            quantisation = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
            packing = partial(pack, kind != "FP8")
            make_checkpoint(folder, LAYERS, packing, **fields, quantization_config=quantisation)
    return folder


def step_times(llm: LLM, batch: int, length: int) -> list[float]:
    """CPU-seconds of the prefill of `batch` prompts, then of each decode step."""
    llm.core.add_all(
        [[i % VOCABULARY for i in ids] for ids in token_ids(batch, length)],
        [Sampling(temperature=0, max_tokens=STEPS + 1, ignore_eos=True)] * batch,
        lambda index, delta: None,
    )
    times = []
    while llm.core.has_work():
        began = time.process_time()
        llm.core.step()
        times.append(time.process_time() - began)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/tiefsee-bench"), help="for the checkpoints")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    engines = {
        format: LLM(
            folder_of(format, options.folder), dtype="bfloat16", format="int8" if format == "INT8" else "keep",
            max_context=1024, max_running=32, max_step_tokens=2048, enable_prefix_cache=False,
        )
        for format in options.formats
    }  # fmt: skip
    times: dict[tuple[str, str], list[float]] = {}
    for run in range(options.runs):
        for figure, batch, length in FIGURES:
            for format, llm in engines.items():
                prefill, *decode = step_times(llm, batch, length)
                times.setdefault((figure, format), []).extend(decode if "decode" in figure else [prefill])
        print(f"run {run + 1} of {options.runs}", file=sys.stderr)
    print(f"{'CPU-ms a step, to BF16':<24}" + "".join(f"{format:>20}" for format in engines))
    for figure, *_ in FIGURES:
        base = statistics.median(times[figure, options.formats[0]])
        medians = [statistics.median(times[figure, format]) for format in engines]
        print(f"{figure:<24}" + "".join(f"{m * 1e3:>12.1f} {m / base:>6.2f}x" for m in medians))


if __name__ == "__main__":
    main()
