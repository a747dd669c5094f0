"""How far two devices may be apart, by number format. docs/parity.md says how the figures were chosen.

No torch here: a report can be read and judged anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from tiefsee.errors import ConfigError

NumberFormat = Literal["float32", "float16", "bfloat16", "fp8", "int8", "fp4"]
# From fine to coarse: a comparison is judged by the coarsest number that either side has used.
FORMATS: tuple[NumberFormat, ...] = ("float32", "float16", "bfloat16", "int8", "fp8", "fp4")


@dataclass(frozen=True)
class Tolerance:
    """Limits of one number format.

    `operator`: relative error of a row of an operator's output, given the same input; `composed`: of an operator
    that is several products in a row (attention, experts). `near_tie`: two scores that are this close, as a share of
    the largest, may be chosen either way, and a router may see its input so far off. With the reference's choices
    given: `logits`, relative error of the median position; `kl`, mean in nats; `top1`, share of positions with the
    same best token, among those where it leads by more than `logits` of the largest logit; `worst_logits` and
    `worst_kl`, of the worst position. Without them: `experts` and `entries`, share of the choices that both sides make.
    """

    operator: float
    composed: float
    near_tie: float
    logits: float
    kl: float
    top1: float
    experts: float
    entries: float
    worst_logits: float
    worst_kl: float


COMPOSED = frozenset({"latent_attention", "window_attention", "run_experts"})
# Operators that compute and give float32 whatever the network's dtype: given the same inputs they are judged as that.
FLOAT32_INSIDE = frozenset({"router_scores", "expert_weights", "index_scores", "compress", "rope_table"})
# Of the limit of a row. Right changes stay below half of either in every format: docs/parity.md.
CHANNEL_FACTOR = 2.0
SCALE_FACTOR = 0.4

# Chosen by a rule from what right changes measure on small models (docs/parity.md), not from any fault.
TOLERANCES: dict[NumberFormat, Tolerance] = {
    "float32": Tolerance(2e-6, 5e-6, 1e-6, 1e-4, 1e-6, 1.0, 0.999, 0.999, 1e-3, 1e-5),
    "float16": Tolerance(5e-3, 1e-2, 1e-3, 2e-2, 5e-5, 0.99, 0.9, 0.85, 0.1, 1e-3),
    "bfloat16": Tolerance(5e-2, 1e-1, 8e-3, 2e-1, 5e-3, 0.99, 0.65, 0.55, 1.0, 5e-2),
    "int8": Tolerance(1e-1, 2e-1, 2e-2, 2e-1, 1e-2, 0.9, 0.6, 0.45, 1.0, 1e-1),
    "fp8": Tolerance(2e-1, 5e-1, 6e-2, 1.0, 1e-1, 0.99, 0.25, 0.0, 5.0, 2.0),
    "fp4": Tolerance(1.0, 1.0, 1e-1, 1.0, 1.0, 0.99, 0.0, 0.0, 10.0, 10.0),
}


def row_limit(tolerance: Tolerance, operator: str) -> float:
    """The limit of the error of an operator's rows."""
    return tolerance.composed if operator in COMPOSED else tolerance.operator


def coarsest(formats: Iterable[str]) -> NumberFormat:
    """The coarsest of some number formats; "plain" counts for nothing."""
    known = [f for f in FORMATS if f in set(formats)]
    return known[-1] if known else "float32"


def overridden(changes: Iterable[str]) -> dict[NumberFormat, Tolerance]:
    """The table with changes such as "bfloat16.operator=0.02". Raises ConfigError with what there is to change."""
    table = dict(TOLERANCES)
    for change in changes:
        name, equals, value = change.partition("=")
        number, _, limit = name.partition(".")
        if not equals or number not in table or limit not in Tolerance.__dataclass_fields__:
            raise ConfigError(
                f"--tolerance {change!r}; needed FORMAT.LIMIT=NUMBER with a format of {', '.join(FORMATS)} and a limit "
                f"of {', '.join(Tolerance.__dataclass_fields__)}"
            )
        try:
            table[number] = replace(table[number], **{limit: float(value)})  # type: ignore[index]
        except ValueError as error:
            raise ConfigError(f"--tolerance {change!r}: {value!r} is no number") from error
    return table
