"""Measured serving runs, one CSV row each, in the columns of AIConfigurator's silicon_sample.csv.

The columns have habits that are read here and nowhere else:

* `tp x attention_dp` equal to `moe_tp x moe_ep` with both of the latter equal to n > 1: n chips, the sizes were
  multiplied by one another (tp 64 with moe_tp 8 and moe_ep 8 is a run of 8 chips; the same figures stand elsewhere
  with tp 8 and moe_ep 8).
* Disaggregated rows without `decode_num_workers`: the concurrency of one worker is not known. It is assumed as in
  rows of the same campaign that have it (`_workers`), and the run says so in `assumed`.
* A "tp" of 12, 20, 28, 36 ..: all chips of the deployment, prefill and decode together. The split is assumed.
* No column says whether runs used speculative decoding. Those of the database dump did not; of the others some did
  (the same configuration, concurrency and release appear with 10.3 and with 5.4 ms). `drafting` is False, or None
  for unknown.
* Lengths vary by run: prompts and answers are 80 to 100 % of what is named; 90 % is taken.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tiefsee.errors import ConfigError

LENGTH_SHARE = 0.9
_WIDE = 16  # attention ranks from which a decode pool is data-parallel with experts over all of them
COLUMNS = (
    "id", "backend", "system", "precision", "mode", "isl", "osl", "silicon_ttft_ms", "silicon_tpot_ms", "model_path",
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How one role's worker is laid out."""

    tp: int
    dp: int
    ep: int
    moe_tp: int

    @property
    def num_chips(self) -> int:
        return self.tp * self.dp


@dataclass(frozen=True)
class Run:
    """One row. Times in seconds; `decode` serves both roles where `prefill` is None."""

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
    drafting: bool | None
    assumed: tuple[str, ...] = ()

    @property
    def measurement(self) -> tuple[object, ...]:
        """What is equal in copies of one measurement."""
        return (self.chip, self.isl, self.osl, self.concurrency, round(self.ttft_s, 6), round(self.tpot_s, 8))

    @property
    def family(self) -> str:
        """What is left out as a whole when accuracy is judged: chip and stack. (The source would not do: the same
        measurements stand in both.)"""
        return f"{self.chip} {self.stack}"

    @property
    def campaign(self) -> tuple[str, ...]:
        """Runs that were made together: they all drafted, or none did."""
        mode = "agg" if self.prefill is None else "disagg"
        return (self.chip, self.stack, self.version, self.precision, mode, self.date, f"{self.isl}/{self.osl}")


def read_measured(path: Path) -> list[Run]:
    """The runs of a CSV, gzipped or not. Raises ConfigError for a file or a row that cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    return list(parse_measured(gzip.decompress(data) if path.suffix == ".gz" else data, str(path)))


def parse_measured(data: bytes, where: str) -> Iterator[Run]:
    rows = csv.DictReader(io.StringIO(data.decode(errors="replace")))
    lacking = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
    if lacking:
        raise ConfigError(f"{where} lacks the columns {', '.join(lacking)}; the form is in docs/points.md")
    for number, row in enumerate(rows, 2):
        try:
            yield _run(row)
        except (ValueError, KeyError, ZeroDivisionError) as error:
            raise ConfigError(f"{where}, line {number}: {error}") from None


def _run(row: Mapping[str, str]) -> Run:
    source_text = row.get("silicon_data_source", "")
    dumped = source_text.startswith("db-dump")
    found = re.search(r"silicon_concurrency=(\d+)", source_text)
    isl, osl = int(row["isl"]), int(row["osl"])
    assumed: list[str] = []
    is_disagg = row["mode"] == "disagg"
    decode = _sizes(row, "decode_" if is_disagg else "")
    prefill = _sizes(row, "prefill_") if is_disagg else None
    num_decode, num_prefill = _int(row, "decode_num_workers"), _int(row, "prefill_num_workers")
    concurrency = float(found[1]) if found else 0.0
    if not concurrency:
        batch = _int(row, "decode_batch_size" if is_disagg else "batch_size")
        concurrency = float(batch * (num_decode or 1) * (decode.dp if is_disagg else 1))
        assumed.append("concurrency")
    if _is_total(decode):
        decode, num_decode, prefill, num_prefill = _split(decode.num_chips, concurrency, isl)
        assumed.append("layout")
    elif is_disagg and not num_decode:
        decode, num_decode = _workers(decode, concurrency, isl, osl)
        num_prefill = _prefill_workers(concurrency, isl, osl)
        assumed.append("decode_num_workers")
    version = row.get("backend_version") or ""
    date = re.search(r"measured=(\d{4}-\d{2}-\d{2})", source_text)
    ttft_s, tpot_s = float(row["silicon_ttft_ms"]) / 1e3, float(row["silicon_tpot_ms"]) / 1e3
    if not (concurrency > 0 and tpot_s > 0 and ttft_s > 0 and isl > 0 and osl > 0):
        raise ValueError("concurrency, lengths and times must be above 0")
    return Run(
        id=row["id"], model=row["model_path"], chip=row["system"].removesuffix("_sxm"), stack=row["backend"],
        version=version, date=date[1] if date else "", precision=row["precision"],
        source="dump" if dumped else "export", concurrency=concurrency, isl=isl, osl=osl, decode=decode,
        num_decode=num_decode or 1, prefill=prefill, num_prefill=num_prefill or 1, ttft_s=ttft_s, tpot_s=tpot_s,
        drafting=False if dumped else None, assumed=tuple(assumed),
    )  # fmt: skip


def _int(row: Mapping[str, str], name: str) -> int:
    return int(row.get(name) or 0)


def _sizes(row: Mapping[str, str], prefix: str) -> Sizes:
    tp, dp, moe_tp, ep = (
        _int(row, prefix + name) or 1 for name in ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
    )
    if tp * dp == moe_tp * ep and moe_tp == ep > 1:
        return Sizes(ep, 1, ep, 1) if dp == 1 else Sizes(1, ep, ep, 1)
    chips = tp * dp
    if chips >= _WIDE and dp == 1 and moe_tp * ep == chips and moe_tp > 1 and ep > 1:
        return Sizes(1, chips, chips, 1)  # 32 = 8 x 4: a wide expert-parallel pool, as its twin in the dump says
    if dp >= _WIDE and ep == 1:
        return Sizes(tp, dp, chips, 1)  # nobody splits each expert over 32 ranks
    if moe_tp * ep > chips:
        moe_tp, ep = 1, chips
    return Sizes(tp, dp, ep, moe_tp)


def _is_power(n: int) -> bool:
    return n & (n - 1) == 0


def _is_total(sizes: Sizes) -> bool:
    """Whether a size is that of a whole deployment."""
    return sizes.dp == 1 and (not _is_power(sizes.tp) or sizes.tp > 16)


def _split(chips: int, concurrency: float, isl: int) -> tuple[Sizes, int, Sizes, int]:
    """A rack's deployments as the dump describes them: few prefill workers of 4, decode by TP8 or wide EP."""
    workers = max(1, (chips - 4) // 8)
    if concurrency <= 64 * workers and (chips - 4) % 8 == 0:
        return Sizes(8, 1, 8, 1), workers, Sizes(1, 4, 4, 1), 1
    share = 0.5 if isl < 4096 else 0.35
    wide = max(8, 1 << (int(chips * share).bit_length() - 1))
    if wide * 2 <= chips - 4 and isl < 4096:
        wide *= 2
    wide = min(wide, 32)
    return Sizes(1, wide, wide, 1), 1, Sizes(1, 4, 4, 1), max(1, (chips - wide) // 4)


def _workers(decode: Sizes, concurrency: float, isl: int, osl: int) -> tuple[Sizes, int]:
    """Decode workers as rows of the same campaigns have them: small loads on several TP workers, large ones on few."""
    if decode.num_chips >= _WIDE or decode.dp > 1:
        return decode, 1
    chips = decode.num_chips
    threshold = 256 if isl < 4096 else 128
    if concurrency <= threshold:
        return decode, (5 if isl < 4096 else 3)
    wide = Sizes(1, chips, chips, 1)
    return wide, max(1, min(4, round(concurrency / (chips * 64)))) if isl < 4096 else 1


def _prefill_workers(concurrency: float, isl: int, osl: int) -> int:
    work = isl / osl
    return max(1, min(10, round(concurrency * work / 1024)))
