"""tiefsee runs DeepSeek models on unlike accelerators.

    from tiefsee import LLM, Sampling

`LLM`, `Sampling` and `Engine` are handed out on first use (PEP 562), so that `import tiefsee` and the
commands that only answer questions (`inspect`, `plan`, `chips`) start without torch.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiefsee.engine import LLM, Engine, Sampling

__version__ = "0.1.0"
__all__ = ["LLM", "Engine", "Sampling", "__version__"]

_LAZY = {"LLM": "tiefsee.engine", "Engine": "tiefsee.engine", "Sampling": "tiefsee.engine"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tiefsee' has no attribute {name!r}; it exports {', '.join(__all__)}")
    leave_vendors_out()
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def leave_vendors_out() -> None:
    """Let `import torch` not load vendors' extensions by itself: ops loads the one that is asked for.

    With torch_npu installed and CANN not found, `import torch` fails otherwise, also for who wants the CPU.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
