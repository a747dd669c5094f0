"""The CPU's operators against the definition."""

from __future__ import annotations

import pytest
import torch

from tiefsee.ops import operators_for, reference
from tiefsee.ops.cpu import FEW_ROWS, CpuOperators

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 96), (2, 96), (FEW_ROWS, 96), (FEW_ROWS + 1, 96), (3, 5, 96), (1, 1, 96), (0, 96)]
)
def test_linear(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype)
    weight = torch.randn(80, 96, generator=generator).to(dtype)
    for bias in (None, torch.randn(80, generator=generator).to(dtype)):
        with torch.inference_mode():
            found, needed = CpuOperators.linear(x, weight, bias), reference.linear(x, weight, bias)
        assert found.shape == needed.shape
        assert found.dtype == dtype
        tolerance = {torch.bfloat16: 2e-2, torch.float16: 2e-3, torch.float32: 1e-5}[dtype]
        torch.testing.assert_close(found.float(), needed.float(), rtol=tolerance, atol=10 * tolerance)


def test_gradients_go_through_the_definition():
    weight = torch.randn(8, 6, dtype=torch.bfloat16, requires_grad=True)
    CpuOperators.linear(torch.randn(2, 6, dtype=torch.bfloat16), weight).sum().backward()
    assert weight.grad is not None


def test_the_table_of_the_cpu_is_used():
    assert isinstance(operators_for(torch.device("cpu")), CpuOperators)
