"""Small linear programs, solved exactly: every vertex is looked at.

    maximise c x  where  A x <= b, x >= 0

For what a planner asks (a handful of pools, some dozens of ways to use them) this is a few thousand linear systems at
once, and there is no tolerance or iteration to doubt.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING

from tiefsee.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_VERTICES = 1_000_000
_EPSILON = 1e-9


@dataclass(frozen=True)
class Optimum:
    value: float
    x: tuple[float, ...]


def maximise(c: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]) -> Optimum | None:
    """The best vertex; None if no x satisfies all rows. A at most 1e6 bases; `a` is [rows, columns].

    Raises ConfigError where there are too many vertices, or where nothing bounds a column that pays.
    """
    import numpy as np

    rows, columns = a.shape
    if comb(rows + columns, rows) > MOST_VERTICES:
        raise ConfigError(f"{columns} ways under {rows} limits are too many to look at; give fewer pools")
    scale = np.maximum(np.abs(b), _EPSILON)
    table = np.hstack([a, np.eye(rows)]) / scale[:, None]  # slacks make equations of the rows
    right = b / scale
    bases = np.array(list(combinations(range(rows + columns), rows)))
    matrices = np.moveaxis(table[:, bases], 0, 1)
    size = np.abs(matrices).max(axis=1, keepdims=True)
    matrices = matrices / np.where(size > 0, size, 1.0)  # columns of like size, so that a determinant says something
    regular = np.abs(np.linalg.det(matrices)) > 1e-12
    bases, matrices, size = bases[regular], matrices[regular], size[regular]
    values = np.linalg.solve(matrices, np.broadcast_to(right, (len(bases), rows))[..., None])[..., 0] / size[:, 0]
    feasible = (values >= -_EPSILON * np.maximum(1.0, np.abs(values).max(axis=1, keepdims=True))).all(axis=1)
    if not feasible.any():
        return None
    if ((a <= 0).all(axis=0) & (c > 0)).any():
        raise ConfigError("a way that pays takes nothing that is limited; that has no best")
    worth = np.hstack([c, np.zeros(rows)])
    bases, values = bases[feasible], np.maximum(values[feasible], 0.0)
    totals = (worth[bases] * values).sum(axis=1)
    best = int(totals.argmax())
    x = np.zeros(rows + columns)
    x[bases[best]] = values[best]
    return Optimum(float(totals[best]), tuple(x[:columns].tolist()))


__all__ = ["Optimum", "maximise"]
