"""An emulated CANN: the real torch_npu runs on a machine without Ascend, and every aclnn call is written down.

    python -m tests.fakecann --soc Ascend910B3 -m tiefsee run MODEL "A prompt" --device npu

See README.md for what it proves and what it does not.
"""

from .build import build, missing
from .environment import environment

__all__ = ["build", "environment", "missing"]
