"""Measured serving runs, one CSV row each, in the columns of AIConfigurator's silicon_sample.csv (docs/points.md).

The table is InferenceX's, in three exports of the same runs, and has habits that are read here and nowhere else:

* The same measurement stands in up to three rows: from the database, with all sizes of its layout, and from two
  exports that say less. `Run.measurement` is equal in copies; a row that says less takes the layout of one that says
  more, here or in the package's own table.
* `tp x attention_dp` equal to `moe_tp x moe_ep` with both of the latter n > 1: n chips, the sizes were multiplied by
  one another (tp 64 with moe_tp 8 and moe_ep 8 is a run of 8 chips, as its copies say).
* Exports write neither workers nor data parallelism, and a "tp" of 12, 20, 28 .. is all chips of a deployment,
  prefill and decode together. The benchmark's published configurations say what ran (campaigns.py).
* No column says whether runs drafted. Rows of the database did not. Of the others it follows from the configuration;
  where the same one was published with drafts and without, a run that is much faster than its like drafted.
* Lengths vary by run: prompts and answers are 80 to 100 % of what is named; 90 % is taken.

Rows of other origin say what they mean, and may say in `num_drafts` how many drafts each step made, in `decode_slots`
how many requests the decode workers hold.
What could not be found out is named in `Run.assumed`.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from tiefsee.errors import ConfigError
from tiefsee.plan.evidence.campaigns import Sizes

__all__ = ["LENGTH_SHARE", "Run", "Sizes", "parse_measured", "read_measured", "shipped_runs"]
LENGTH_SHARE = 0.9
_WIDE = 16  # attention ranks from which a decode pool is data-parallel with experts over all of them
ORIGINS = {"db-dump": "dump", "source_file=": "export"}
COLUMNS = (
    "id", "backend", "system", "precision", "mode", "isl", "osl", "silicon_ttft_ms", "silicon_tpot_ms", "model_path",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One row; `decode` serves both roles where `prefill` is None. `drafts` of each step, and `slots`, the requests
    that all decode workers hold at most; None where nobody knows."""

    id: str
    model: str
    chip: str
    stack: str
    version: str
    date: str
    precision: str
    source: str
    concurrency: float
    isl: int
    osl: int
    decode: Sizes
    num_decode: int
    prefill: Sizes | None
    num_prefill: int
    ttft_s: float
    tpot_s: float
    drafts: int | None
    slots: int | None = None
    assumed: tuple[str, ...] = ()

    @property
    def drafting(self) -> bool | None:
        return None if self.drafts is None else self.drafts > 0

    @property
    def num_chips(self) -> int:
        """Of both pools together."""
        first = self.prefill.num_chips * self.num_prefill if self.prefill is not None else 0
        return first + self.decode.num_chips * self.num_decode

    @property
    def measurement(self) -> tuple[object, ...]:
        """What is equal in copies of one measurement."""
        return (self.chip, self.isl, self.osl, self.concurrency, round(self.ttft_s, 6), round(self.tpot_s, 8))

    @property
    def family(self) -> str:
        """What is left out as a whole when accuracy is judged: chip and stack. (The source would not do: the same
        measurements stand in all three.)"""
        return f"{self.chip} {self.stack} inferencex"

    @property
    def campaign(self) -> tuple[str, ...]:
        """Runs that were made together."""
        mode = "agg" if self.prefill is None else "disagg"
        return (self.chip, self.stack, self.version, self.precision, mode, self.date, f"{self.isl}/{self.osl}")


def read_measured(path: Path) -> list[Run]:
    """The runs of a CSV, gzipped or not. Raises ConfigError for a file or a row that cannot be read."""
    try:
        data = path.read_bytes()
        return parse_measured(gzip.decompress(data) if path.suffix == ".gz" else data, str(path))
    except gzip.BadGzipFile:
        raise ConfigError(f"{path} ends in .gz and is not gzipped") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def parse_measured(data: bytes, where: str) -> list[Run]:
    """Runs with all that can be known of them, with the help of the package's own table."""
    from tiefsee.plan.evidence.resolve import resolve

    return resolve(list(rows_of(data, where)), shipped_rows())


@cache
def shipped_runs() -> tuple[Run, ...]:
    """The table that the package carries."""
    from tiefsee.plan.evidence.resolve import resolve

    return tuple(resolve(list(shipped_rows()), ()))


@cache
def shipped_rows() -> tuple[Run, ...]:
    data = resources.files("tiefsee.plan").joinpath("data/measured.csv.gz").read_bytes()
    return tuple(rows_of(gzip.decompress(data), "measured.csv.gz"))


def rows_of(data: bytes, where: str) -> Iterator[Run]:
    """Each row as it stands, before resolve.py has looked at it."""
    rows = csv.DictReader(io.StringIO(data.decode(errors="replace")))
    lacking = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
    if lacking:
        raise ConfigError(f"{where} lacks the columns {', '.join(lacking)}; the form is in docs/points.md")
    for number, row in enumerate(rows, 2):
        try:
            yield _run(row)
        except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            raise ConfigError(f"{where}, line {number}: {error}") from None


def _run(row: Mapping[str, str]) -> Run:
    source_text = row.get("silicon_data_source") or ""
    source = next((name for start, name in ORIGINS.items() if source_text.startswith(start)), "own")
    found = re.search(r"silicon_concurrency=(\d+)", source_text)
    isl, osl = int(row["isl"]), int(row["osl"])
    assumed: list[str] = []
    is_disagg = row["mode"] == "disagg"
    if row["mode"] not in ("agg", "disagg"):
        raise ValueError(f"mode is {row['mode']!r}; needed is agg or disagg")
    read = _stated if source == "own" else _sizes
    decode = read(row, "decode_" if is_disagg else "")
    prefill = read(row, "prefill_") if is_disagg else None
    num_decode, num_prefill = _int(row, "decode_num_workers"), _int(row, "prefill_num_workers")
    concurrency = float(found[1]) if found else 0.0
    if not concurrency:
        batch = _int(row, "decode_batch_size" if is_disagg else "batch_size")
        concurrency = float(batch * (num_decode or 1) * (decode.dp if is_disagg else 1))
        assumed.append("concurrency")
    if is_disagg and not num_decode:
        assumed.append("decode_num_workers")
    if source == "export" and is_total(decode):
        assumed.append("layout")
    date = re.search(r"measured=(\d{4}-\d{2}-\d{2})", source_text)
    ttft_s, tpot_s = float(row["silicon_ttft_ms"]) / 1e3, float(row["silicon_tpot_ms"]) / 1e3
    if not (concurrency > 0 and 0 < tpot_s < 1e6 and 0 < ttft_s < 1e6 and isl > 0 and osl > 0):
        raise ValueError("concurrency, lengths and times must be above 0")
    return Run(
        id=row["id"], model=row["model_path"], chip=row["system"].removesuffix("_sxm"), stack=row["backend"],
        version=row.get("backend_version") or "", date=date[1] if date else "", precision=row["precision"],
        source=source, concurrency=concurrency, isl=isl, osl=osl, decode=decode,
        num_decode=num_decode or 1, prefill=prefill, num_prefill=num_prefill or 1, ttft_s=ttft_s, tpot_s=tpot_s,
        drafts=None if source == "export" else _int(row, "num_drafts"), slots=_int(row, "decode_slots") or None,
        assumed=tuple(assumed),
    )  # fmt: skip


def _int(row: Mapping[str, str], name: str) -> int:
    return int(row.get(name) or 0)


def _stated(row: Mapping[str, str], prefix: str) -> Sizes:
    tp, dp, ep, moe_tp = (
        _int(row, prefix + name) for name in ("tp_size", "attention_dp_size", "moe_ep_size", "moe_tp_size")
    )
    tp, dp, ep = tp or 1, dp or 1, ep or 1
    return Sizes(tp, dp, ep, moe_tp or tp * dp // ep)


def _sizes(row: Mapping[str, str], prefix: str) -> Sizes:
    """Sizes of InferenceX's tables, with their habits."""
    tp, dp, moe_tp, ep = (
        _int(row, prefix + name) or 1 for name in ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
    )
    if tp * dp == moe_tp * ep and moe_tp == ep > 1:
        return Sizes(ep, 1, ep, 1) if dp == 1 else Sizes(1, ep, ep, 1)
    chips = tp * dp
    if chips >= _WIDE and dp == 1 and moe_tp * ep == chips and moe_tp > 1 and ep > 1:
        return Sizes(1, chips, chips, 1)  # 32 = 8 x 4: a wide expert-parallel pool, as its copy in the database says
    if dp >= _WIDE and ep == 1:
        return Sizes(tp, dp, chips, 1)  # nobody splits each expert over 32 ranks
    if moe_tp * ep != chips:
        moe_tp, ep = (chips, 1) if ep == 1 else (1, chips)
    return Sizes(tp, dp, ep, moe_tp)


def is_total(sizes: Sizes) -> bool:
    """Whether a size is that of a whole deployment."""
    return sizes.dp == 1 and (sizes.tp & (sizes.tp - 1) != 0 or sizes.tp > 16)
