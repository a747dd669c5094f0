"""One checkpoint and one reference pass per variant, shared by the tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.family import VARIANTS, load_reference, make_checkpoint, random_tokens
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
    model: nn.Module
    tokens: list[int]
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


@pytest.fixture(scope="session")
def make_case(tmp_path_factory: pytest.TempPathFactory, device: str) -> Callable[[str, int], Case]:
    def make(variant: str, seed: int) -> Case:
        folder = make_checkpoint(tmp_path_factory.mktemp(variant) / "saved", variant, seed)
        model, tokens = load_reference(folder), random_tokens(LONGEST, seed)
        return Case(variant, folder, device, model, tokens, reference(model, tokens))

    return make


@pytest.fixture(scope="module", params=VARIANTS)
def case(request: pytest.FixtureRequest, make_case: Callable[[str, int], Case]) -> Iterator[Case]:
    made = make_case(request.param, VARIANTS[request.param].seed)
    yield made
    shutil.rmtree(made.folder.parent)
