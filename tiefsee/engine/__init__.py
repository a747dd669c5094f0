"""One pool of like devices serving one model: `LLM` in the calling thread, `Engine` for asyncio.

Names are handed out on first use (PEP 562): `Sampling` and `Delta` are what a process without torch
needs to talk to an engine in another one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiefsee.engine.config import EngineConfig
    from tiefsee.engine.constraint import Constraint
    from tiefsee.engine.core import EngineCore
    from tiefsee.engine.delta import Delta, TokenLogprobs
    from tiefsee.engine.engine import Engine
    from tiefsee.engine.generation import Answer, Completion
    from tiefsee.engine.llm import LLM
    from tiefsee.engine.sampling import Sampling

__all__ = [
    "LLM",
    "Answer",
    "Completion",
    "Constraint",
    "Delta",
    "Engine",
    "EngineConfig",
    "EngineCore",
    "Sampling",
    "TokenLogprobs",
]

_HOME = {
    "LLM": "llm",
    "Answer": "generation",
    "Completion": "generation",
    "Constraint": "constraint",
    "Delta": "delta",
    "Engine": "engine",
    "EngineConfig": "config",
    "EngineCore": "core",
    "Sampling": "sampling",
    "TokenLogprobs": "delta",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tiefsee.engine' has no attribute {name!r}; it exports {', '.join(__all__)}")
    value = getattr(import_module(f"tiefsee.engine.{_HOME[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
