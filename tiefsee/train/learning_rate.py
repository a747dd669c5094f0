"""The learning rate of a step: warm-up, a plateau, and a linear decay to zero."""

from __future__ import annotations

from tiefsee.errors import ConfigError


def learning_rate(step: int, peak: float, warmup_steps: int, num_steps: int, decay_share: float) -> float:
    """Warm-up over `warmup_steps`, then `peak`, then down to zero over the last `decay_share` of the run.

    Of 1,000 steps with 100 of warm-up and a share of 0.4, step 0 has peak / 100, step 599 the peak and
    step 999 peak / 400. The plateau lets a run be prolonged from any saved state before the decay.
    """
    num_decay = round(decay_share * num_steps)
    if not (0 <= step < num_steps and 0 <= decay_share <= 1 and 0 <= warmup_steps <= num_steps - num_decay):
        raise ConfigError(
            f"step {step} of {num_steps} with {warmup_steps} warm-up and {num_decay} decay steps; "
            "warm-up and decay must fit into the run; lower one of them or train longer"
        )
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * min(1.0, (num_steps - step) / max(1, num_decay))
