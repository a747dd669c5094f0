"""MTP drafts of the bundled model: how often they are right, and whether they ever cost anything.

    python benchmarks/speculation.py [--threads 1]

Acceptance: 64 prompts of held-out prose (tests/data), 128 tokens each, temperature 0; of the drafts that
were verified, the share that the decoder agreed with, by depth. Speed: 16 requests at once, 96 tokens each,
without drafts and with the adaptive length, in turn; the ratio is of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from tiefsee import LLM, Sampling

PROSE = Path(__file__).parent.parent / "tests" / "data" / "held_out_prose.json"


def prompts() -> list[str]:
    return [entry["text"] for entry in json.loads(PROSE.read_text(encoding="utf-8"))]


def acceptance(model: str, num_drafts: int) -> float:
    """Share of accepted drafts when every step drafts `num_drafts` tokens."""
    llm = LLM(model, max_draft=num_drafts, max_running=16)
    llm.core.draft_length.choose = lambda num_requests: num_drafts  # type: ignore[method-assign]
    llm.generate(prompts(), Sampling(temperature=0, max_tokens=128, ignore_eos=True))
    share = llm.core.counters.acceptance
    assert share is not None
    return share


def seconds(llm: LLM, texts: list[str], num_tokens: int) -> float:
    began = time.perf_counter()
    llm.generate(texts, Sampling(temperature=0, max_tokens=num_tokens, ignore_eos=True))
    return time.perf_counter() - began


def compare_speed(model: str, batch: int, rounds: int, num_tokens: int = 96) -> tuple[float, float]:
    """Tokens per second without drafts and with the adaptive length."""
    engines = [LLM(model, max_draft=d, max_running=batch, enable_prefix_cache=False) for d in (0, 2)]
    times: list[list[float]] = [[], []]
    for round_number in range(rounds + 1):
        for engine, measured in zip(engines, times, strict=True):
            spent = seconds(engine, prompts()[:batch], num_tokens)
            if round_number:  # the first round warms up
                measured.append(spent)
    plain, adaptive = (batch * num_tokens / statistics.median(t) for t in times)
    return plain, adaptive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiefsee-demo")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for depth in (1, 2):
        print(f"acceptance with {depth} draft{'s' * (depth > 1)} a step: {acceptance(options.model, depth):.1%}")
    for batch in (1, 16):
        plain, adaptive = compare_speed(options.model, batch, options.rounds)
        print(
            f"{batch} request{'s' * (batch > 1)}: {plain:.0f} tokens/s without drafts, {adaptive:.0f} with adaptive "
            f"drafts: {adaptive / plain:.2f}x"
        )


if __name__ == "__main__":
    main()
