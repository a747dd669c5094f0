"""Pretraining in one process: a plain loop over packed batches, for any model of the family.

    batch -> forward (+ MTP loss) -> backward -> clip -> optimizer -> expert bias -> metrics -> save

Exact resume: the batch of a step is a pure function of (seed, step), and everything else is in the saved
state, so a killed run goes on bit for bit.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from tiefsee.model import Network
from tiefsee.model.experts import MixtureOfExperts
from tiefsee.train.balance import ExpertBalance
from tiefsee.train.learning_rate import learning_rate
from tiefsee.train.loss import packed_losses
from tiefsee.train.optim import build_optimizer
from tiefsee.train.state import load_state, save_state


class Batches(Protocol):
    """Packed batches: whole documents side by side, of `lengths` tokens each."""

    def batch(self, step: int) -> tuple[Tensor, list[int]]: ...


@dataclass(frozen=True)
class PretrainConfig:
    """One run. `learning_rate` is the peak; `mtp_weight` is V3's 0.3.

    `bias_speed` moves the expert biases; V3's 1e-3 is for a run of many more steps than ours.
    """

    num_steps: int
    learning_rate: float = 4e-3
    warmup_steps: int = 100
    decay_share: float = 0.4
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    mtp_weight: float = 0.3
    evaluate_every: int = 250
    save_every: int = 250
    bias_speed: float = 2e-3
    seed: int = 0


@dataclass
class Progress:
    """Metrics of the last step; `loss` and `mtp_loss` in nats per token, `mfu` 6 * active parameters * tokens/s
    over the device's measured matmul peak (attention not counted)."""

    step: int
    loss: float
    mtp_loss: float
    grad_norm: float
    learning_rate: float
    worst_expert_load: float
    tokens_per_s: float
    mfu: float | None = None


def pretrain(
    network: Network, batches: Batches, config: PretrainConfig, out: Path,
    evaluate: Callable[[Network], dict[str, float]], report: Callable[[Progress], None],
    flops_per_s: float | None = None,
) -> bool:  # fmt: skip
    """Train `network` in place from the newest state in `out`, or from its present values.

    Appends one JSON line per evaluation to `out/metrics.jsonl`. SIGINT and SIGTERM end the run after the
    step in flight, with its state saved. Returns whether all steps are done.
    """
    optimizer = build_optimizer(network, config.learning_rate, config.weight_decay)
    balance = ExpertBalance(network, config.bias_speed)
    first = _resume(network, optimizer, out)
    stop = _StopSignal()
    flops_per_token = 6 * active_parameters(network)
    for step in range(first, config.num_steps):
        began = time.perf_counter()
        rate = learning_rate(step, config.learning_rate, config.warmup_steps, config.num_steps, config.decay_share)
        tokens_T, lengths = batches.batch(step)
        losses = train_step(network, optimizer, tokens_T, lengths, rate, config)
        worst = balance.step()
        speed = len(tokens_T) / (time.perf_counter() - began)
        mfu = None if flops_per_s is None else speed * flops_per_token / flops_per_s
        report(Progress(step, losses[0], losses[1], losses[2], rate, worst, speed, mfu))
        done, last = step + 1, stop.asked or step + 1 == config.num_steps
        if last or done % config.evaluate_every == 0:
            metrics = evaluate(network)
            balance.discard()
            _append(out / "metrics.jsonl", {"step": done, "loss": losses[0], "tokens_per_s": speed, **metrics})
        if last or done % config.save_every == 0:
            save_state(out, _state(network, optimizer, done, config))
        if stop.asked:
            return done == config.num_steps
    return True


def train_step(
    network: Network,
    optimizer: Any,
    tokens_T: Tensor,
    lengths: list[int],
    rate: float,
    config: PretrainConfig,
) -> tuple[float, float, float]:
    """One update; returns next-token loss, MTP loss and the gradient norm before clipping."""
    optimizer.set_learning_rate(rate)
    losses = packed_losses(network, tokens_T, lengths)
    losses.total(config.mtp_weight).backward()
    norm = float(nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm))
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"the gradient norm is {norm} at loss {losses.next_token.item():.3f}; lower the learning rate"
        )
    optimizer.step()
    optimizer.zero_grad()
    return losses.next_token.item(), sum(m.item() for m in losses.mtp), norm


def active_parameters(network: Network) -> int:
    """Parameters that one token meets in training, embedding left out, head counted per prediction."""
    count = 0
    for name, parameter in network.named_parameters():
        if name == "embed.weight":
            continue
        share = 1.0
        if ".experts." in name:
            moe = network.get_submodule(name.split(".experts.")[0])
            assert isinstance(moe, MixtureOfExperts)
            share = moe.spec.router.num_experts_per_tok / moe.spec.n_routed_experts
        times = 1 + len(network.mtp) if name == "head.weight" else 1
        count += int(parameter.numel() * share * times)
    return count


def _state(network: Network, optimizer: Any, step: int, config: PretrainConfig) -> dict[str, Any]:
    return {
        "step": step,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "config": asdict(config),
    }


def _resume(network: Network, optimizer: Any, out: Path) -> int:
    state = load_state(out)
    if state is None:
        return 0
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _append(path: Path, row: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


class _StopSignal:
    """Remembers that the user asked to stop; the loop looks after each step."""

    def __init__(self) -> None:
        self.asked = False
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True
