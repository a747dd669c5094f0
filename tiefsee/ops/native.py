"""The CPU's compiled kernels (csrc/cpu): found beside this file, called through ctypes.

The library is plain C without Python in it. It is built with the package where there is a C++ compiler.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

_POINTER, _INT64, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float


class Products:
    """Products of BF16 rows, see csrc/cpu/products.cpp. Tensors are contiguous and lie on the CPU.

    `way` is what this processor has: 2 with AMX (for experts with many rows), 1 with AVX512-BF16, 0 with
    neither; then there is nothing to call.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library, self.way = library, int(library.tiefsee_best())
        if not self.way:
            return
        self._linear, self._experts = library.tiefsee_linear, library.tiefsee_experts
        self._attention = library.tiefsee_attention
        self._linear.argtypes = [_INT, *[_POINTER] * 3, *[_INT64] * 3]
        self._experts.argtypes = [_INT, _INT, *[_POINTER] * 2, _INT64, *[_POINTER] * 5, *[_INT64] * 2, _FLOAT]
        self._attention.argtypes = [_INT, *[_POINTER] * 3, _INT64, *[_POINTER] * 3, *[_INT64] * 5, _FLOAT]
        self._linear.restype = self._experts.restype = self._attention.restype = None

    def linear(self, x_RI: Tensor, weight_OI: Tensor) -> Tensor:
        """x times the weight transposed, [R, O]."""
        out_RO = x_RI.new_empty(x_RI.shape[0], weight_OI.shape[0])
        self._linear(
            torch.get_num_threads(), x_RI.data_ptr(), weight_OI.data_ptr(), out_RO.data_ptr(),
            *x_RI.shape, weight_OI.shape[0],
        )  # fmt: skip
        return out_RO

    def experts(
        self, sorted_ND: Tensor, counts_E: Tensor, w1_EFD: Tensor, w2_EDF: Tensor, w3_EFD: Tensor, limit: float | None
    ) -> Tensor:
        """SwiGLU of each row through its expert, [N, D]; rows are sorted by expert, `counts` (int64) of each."""
        inner = w1_EFD.shape[1]
        hidden_NF, out_ND = sorted_ND.new_empty(len(sorted_ND), inner), torch.empty_like(sorted_ND)
        self._experts(
            self.way, torch.get_num_threads(), sorted_ND.data_ptr(), counts_E.data_ptr(), len(counts_E),
            w1_EFD.data_ptr(), w2_EDF.data_ptr(), w3_EFD.data_ptr(), hidden_NF.data_ptr(), out_ND.data_ptr(),
            sorted_ND.shape[1], inner, math.inf if limit is None else limit,
        )  # fmt: skip
        return out_ND

    def attention(
        self, query_BHK: Tensor, pool_MPK: Tensor, tables_BM: Tensor, first_B: Tensor, last_B: Tensor, rank: int,
        scale: float,
    ) -> Tensor:  # fmt: skip
        """Absorbed latent attention, [B, H, rank]: one query per request over its rows `first` to `last` - 1,
        which lie on the pages that its row of `tables` (int64) names; K = rank + R."""
        requests, heads, width = query_BHK.shape
        out_BHC = query_BHK.new_empty(requests, heads, rank)
        self._attention(
            torch.get_num_threads(), query_BHK.data_ptr(), pool_MPK.data_ptr(), tables_BM.data_ptr(),
            tables_BM.shape[1], first_B.data_ptr(), last_B.data_ptr(), out_BHC.data_ptr(), requests, heads, width,
            rank, pool_MPK.shape[1], scale,
        )  # fmt: skip
        return out_BHC


@cache
def load() -> Products | None:
    """The kernels; None if the package was installed without a C++ compiler."""
    paths = (Path(__file__).with_name("_products" + suffix) for suffix in EXTENSION_SUFFIXES)
    found = next((path for path in paths if path.is_file()), None)
    return None if found is None else Products(ctypes.CDLL(str(found)))
