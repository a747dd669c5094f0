"""One pool of like devices serving one model: `LLM` in the calling thread, `Engine` for asyncio."""

from tiefsee.engine.config import EngineConfig
from tiefsee.engine.core import EngineCore
from tiefsee.engine.engine import Engine
from tiefsee.engine.generation import Answer, Completion, Delta
from tiefsee.engine.llm import LLM
from tiefsee.engine.sample import TokenLogprobs
from tiefsee.engine.sampling import Sampling

__all__ = [
    "LLM",
    "Answer",
    "Completion",
    "Delta",
    "Engine",
    "EngineConfig",
    "EngineCore",
    "Sampling",
    "TokenLogprobs",
]
