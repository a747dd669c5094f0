"""One checkpoint and one reference pass per variant, shared by the tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.family import VARIANTS, load_reference, make_checkpoint, random_tokens
from tests.parity.case import LONGEST, Case
from tests.parity.compare import reference


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
