"""`tiefsee train data | pretrain`: text to shards, shards to a checkpoint."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tiefsee.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tiefsee.model import Network
    from tiefsee.train.pretrain import PretrainConfig, Progress

HELD_OUT = ("held_out_novels", "held_out_tales", "held_out_tasks")
EVALUATED_WINDOWS = 64


def run_data(options: argparse.Namespace) -> int:
    from tiefsee.train.corpus import prepare

    manifest = prepare(Path(options.text), Path(options.out), options.vocab_size, options.seed)
    print(json.dumps(manifest, indent=2))
    return 0


def run_pretrain(options: argparse.Namespace) -> int:
    import torch

    from tiefsee.cli.run import set_threads
    from tiefsee.model import Network
    from tiefsee.model.initialise import initialise
    from tiefsee.ops import open_device, operators_for
    from tiefsee.ops.cpu import keep_freed_memory
    from tiefsee.spec import model_spec
    from tiefsee.train.export import export
    from tiefsee.train.host import matmul_flops_per_s
    from tiefsee.train.packing import open_batches
    from tiefsee.train.pretrain import PretrainConfig, pretrain

    config = read_config(Path(options.config))
    spec, data, out = model_spec(config), Path(options.data), Path(options.out)
    set_threads(options.threads)
    keep_freed_memory(any_size=True)
    device = open_device(options.device)
    torch.manual_seed(options.seed)
    network = Network(spec, operators_for(device))
    initialise(network, options.seed)
    network.to(device)
    batches = open_batches(data / "shards", options.tokens_per_row, options.rows, options.seed)
    settings = PretrainConfig(
        num_steps=options.steps, learning_rate=options.learning_rate, save_every=options.save_every,
        evaluate_every=options.save_every, seed=options.seed,
    )  # fmt: skip
    finished = pretrain(
        network,
        batches,
        settings,
        out / "state",
        evaluator(data, options.tokens_per_row),
        progress_line(settings),
        matmul_flops_per_s(device),
    )
    print(file=sys.stderr)
    if not finished:
        print(f"stopped; the same command goes on from {out / 'state'}", file=sys.stderr)
        return 130
    export(network, config, data, out / "checkpoint")
    print(out / "checkpoint")
    return 0


def read_config(path: Path) -> dict[str, object]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}; needed the config.json of the model to train") from error


def evaluator(data: Path, tokens_per_row: int) -> Callable[[Network], dict[str, float]]:
    """Held-out loss in bits per byte of each held-out shard, over windows of `tokens_per_row` tokens."""
    from tiefsee.train.evaluate import bits_per_byte, held_out_batches
    from tiefsee.train.loss import packed_losses
    from tiefsee.train.shards import Shard

    shards = {name: Shard(data / "shards" / name) for name in HELD_OUT}

    def evaluate(network: Network) -> dict[str, float]:
        import torch

        metrics = {}
        for name, shard in shards.items():
            nats, num_bytes = 0.0, 0
            for window in held_out_batches(shard, tokens_per_row, 8, EVALUATED_WINDOWS):
                with torch.no_grad():
                    losses = packed_losses(network, window.tokens_T.to(network.device), window.lengths, mtp=False)
                nats += losses.next_token.item() * losses.num_targets
                num_bytes += window.num_bytes
            metrics[f"{name}_bits_per_byte"] = bits_per_byte(nats, num_bytes)
        return metrics

    return evaluate


def progress_line(config: PretrainConfig) -> Callable[[Progress], None]:
    """One line that is written over on a terminal, one line every 25 steps elsewhere."""
    began = time.monotonic()
    first: list[int] = []

    def report(p: Progress) -> None:
        first.append(p.step)
        done = p.step + 1 - first[0]
        left = (config.num_steps - p.step - 1) * (time.monotonic() - began) / done
        mfu = "" if p.mfu is None else f"  MFU {p.mfu:.1%}"
        line = (
            f"step {p.step + 1}/{config.num_steps}  loss {p.loss:.3f}  MTP {p.mtp_loss:.3f}  norm {p.grad_norm:.2f}  "
            f"rate {p.learning_rate:.1e}  load {p.worst_expert_load:.1f}  {p.tokens_per_s:,.0f} tokens/s{mfu}  "
            f"{math.ceil(left / 60)} min left"
        )
        if sys.stderr.isatty():
            print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)
        elif done == 1 or (p.step + 1) % 25 == 0:
            print(line, file=sys.stderr, flush=True)

    return report
