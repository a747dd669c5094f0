"""A variant's checkpoint with what transformers makes of it, and engines on the same files."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from tests.parity.compare import Reference, reference
from tests.published import publish
from tiefsee import LLM

LONGEST = 600


@dataclass
class Case:
    """A variant's checkpoint as transformers writes it, its model there, and one pass over `tokens`."""

    variant: str
    folder: Path
    device: str
    model: nn.Module = field(repr=False)
    tokens: list[int] = field(repr=False)
    reference: Reference

    def llm(self, folder: Path | None = None, **options: Any) -> LLM:
        """An engine on the checkpoint, without prefix cache and drafts unless asked for."""
        options = {"max_context": 1024, "enable_prefix_cache": False, "max_draft": 0, **options}
        return LLM(folder or self.folder, device=self.device, dtype="float32", **options)

    @cached_property
    def shared_llm(self) -> LLM:
        """The engine of all tests that need nothing special."""
        return self.llm()

    @cached_property
    def published(self) -> Path:
        """The same checkpoint as a release spells it, with a random MTP layer."""
        return publish(self.folder, self.folder.with_name("published"))

    def pass_over(self, tokens: list[int]) -> Reference:
        return reference(self.model, tokens)
