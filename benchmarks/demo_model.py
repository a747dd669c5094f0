"""The bundled model's figures: held-out tasks, and samples of held-out prose.

    python benchmarks/demo_model.py [--model tiefsee-demo] [--problems 100]

Task problems are held out by a hash of the question and made by the seed; answers are greedy and end at the
first newline. Samples continue the first prompts of tests/data, temperature 0.8, seed 0: the first ones, not
the best ones. Held-out bits per byte are in RUN/state/metrics.jsonl of the training run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from tiefsee import LLM, Sampling
from tiefsee.train import tasks
from tiefsee.train.evaluate import task_scores

PROSE = Path(__file__).parent.parent / "tests" / "data" / "held_out_prose.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiefsee-demo")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--samples", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    llm = LLM(options.model, max_running=32)

    def generate(prompts: Sequence[str]) -> list[str]:
        answers = llm.generate(list(prompts), Sampling(temperature=0, max_tokens=40, stop=("\n",)))
        return [answer.text for answer in answers]

    for level in tasks.LEVELS:
        scores = task_scores(generate, options.problems, levels=[level])
        print(
            f"level {level}: " + ", ".join(f"{kind} {s.accuracy:.0%} of {s.num_problems}" for kind, s in scores.items())
        )
    for entry in json.loads(PROSE.read_text(encoding="utf-8"))[: options.samples]:
        prompt = entry["text"]
        answer = llm.generate(prompt, Sampling(temperature=0.8, seed=0, max_tokens=60))
        print(f"\n> {prompt}\n{answer.text}")


if __name__ == "__main__":
    main()
