"""How one operator is computed: the definition in plain torch, and one file per faster backend."""

from tiefsee.ops.table import Operators, open_device, operators_for, rank_devices

__all__ = ["Operators", "open_device", "operators_for", "rank_devices"]
