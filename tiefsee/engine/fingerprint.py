"""Which model is it, where there are no files to ask: the fingerprint of a network in memory."""

from __future__ import annotations

import hashlib

import torch

from tiefsee.model import Network

SAMPLES = 16


def network_fingerprint(network: Network) -> str:
    """32 hexadecimal digits: names and shapes of all parameters, and values of each, rounded to BF16.

    Rounded, so that the same weights in float32 and in BF16 are one model. Packed weights count by their shape.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(network.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        values = parameter.detach().flatten()
        values = values[:: max(1, len(values) // SAMPLES)].to(torch.bfloat16).cpu().contiguous()
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
