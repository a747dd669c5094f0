"""Huawei's Ascend, through torch_npu: fused operators where there are some, plain ones for the rest.

    device.py     finding torch_npu, CANN and the card        chip.py    what each generation has
    rules.py      may a fused operator take this, and if not, why not
    table.py      the operators        attention.py, indexer.py, experts.py, linear.py, norms.py, hyper.py   adapters
    packed.py     products of packed weights, and their activations as codes
    settle.py     after a load: weights in the order and with the scales that those products want

docs/ascend.md lists the operators, what each is verified by, and what is assumed.
"""

from tiefsee.ops.ascend.device import open_device
from tiefsee.ops.ascend.table import AscendOperators, operators

__all__ = ["AscendOperators", "open_device", "operators"]
