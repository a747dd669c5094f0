"""Which layers a pipeline stage holds: contiguous pieces, as even as layers allow.

Embedding, heads and MTP count with what they cost, so the last stages hold fewer layers (V3's last of 16: one or two).
"""

from __future__ import annotations

from functools import lru_cache

from tiefsee.plan.training.layout import Schedule


def rank_chunks(pp: int, virtual: int, schedule: Schedule) -> tuple[tuple[int, ...], ...]:
    """The chunks of the network that each rank works on. DualPipe's rank r also holds stage pp - 1 - r."""
    if schedule == "dualpipe":
        return tuple((rank, pp - 1 - rank) for rank in range(pp))
    return tuple(tuple(rank + pp * turn for turn in range(virtual)) for rank in range(pp))


@lru_cache(maxsize=20000)
def cut(loads: tuple[float, ...], pp: int, virtual: int, schedule: Schedule) -> tuple[int, ...]:
    """Ends of the chunks: chunk i holds units ends[i - 1] to ends[i]. Minimises the fullest rank's load."""
    chunks = pp * virtual
    if chunks == 1:
        return (len(loads),)
    ends = _smallest_maximum(loads, chunks)
    return _improved(loads, ends, rank_chunks(pp, virtual, schedule))


def _smallest_maximum(loads: tuple[float, ...], chunks: int) -> list[int]:
    """Contiguous pieces whose largest is as small as can be: bisection over the bound, pieces filled in order."""
    low, high = max(loads), sum(loads)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if _fill(loads, chunks, middle) is not None else (middle, high)
    found = _fill(loads, chunks, high * (1 + 1e-9))
    assert found is not None
    return found


def _fill(loads: tuple[float, ...], chunks: int, bound: float) -> list[int] | None:
    ends: list[int] = []
    total = 0.0
    for index, load in enumerate(loads):
        # Pieces that are left must not be empty.
        if index and (total + load > bound or len(loads) - index <= chunks - len(ends) - 1):
            ends.append(index)
            total = 0.0
        total += load
        if len(ends) >= chunks:
            return None
    ends.append(len(loads))
    return ends if len(ends) == chunks and total <= bound else None


def _improved(loads: tuple[float, ...], ends: list[int], ranks: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """Moves single boundaries while the fullest rank gets emptier, or as full and the sum of squares smaller."""
    prefix = [0.0]
    for load in loads:
        prefix.append(prefix[-1] + load)

    def chunk_load(i: int) -> float:
        return prefix[ends[i]] - prefix[ends[i - 1] if i else 0]

    rank_load = [sum(chunk_load(c) for c in set(chunks)) for chunks in ranks]
    touched = {c: [r for r, chunks in enumerate(ranks) if c in chunks] for c in range(len(ends))}
    for _ in range(200):
        best: tuple[float, float] | None = None
        move = (0, 0)
        now = (max(rank_load), sum(x * x for x in rank_load))
        for i in range(len(ends) - 1):
            for step in (-1, 1):
                left = ends[i - 1] if i else 0
                if not left < ends[i] + step < ends[i + 1]:
                    continue
                delta = prefix[ends[i] + step] - prefix[ends[i]]
                changed = dict.fromkeys(touched[i] + touched[i + 1], 0.0)
                for r in touched[i]:
                    changed[r] += delta
                for r in touched[i + 1]:
                    changed[r] -= delta
                top = max((x + changed.get(r, 0.0) for r, x in enumerate(rank_load)))
                squares = now[1] + sum((rank_load[r] + d) ** 2 - rank_load[r] ** 2 for r, d in changed.items())
                if best is None or (top, squares) < best:
                    best, move = (top, squares), (i, step)
        if best is None or best >= (now[0] * (1 - 1e-12), now[1] * (1 - 1e-9)):
            break
        ends[move[0]] += move[1]
        rank_load = [sum(chunk_load(c) for c in set(chunks)) for chunks in ranks]
    return tuple(ends)
