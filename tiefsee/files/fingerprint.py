"""Which checkpoint is it? The same files give the same fingerprint, on whatever device and in whatever dtype.

Of every tensor name, dtype and shape count; of the bytes a sample: 64 from the middle of up to 256 tensors, spread
over all. A fine-tune that changes any of these matrices is another model. Two files of one model in unlike formats
(FP8 as published, BF16 as converted) are two fingerprints.
"""

from __future__ import annotations

import hashlib

from tiefsee.errors import CheckpointError
from tiefsee.files.find import ModelFiles

SAMPLED_TENSORS = 256
SAMPLED_BYTES = 64


def fingerprint(files: ModelFiles) -> str:
    """32 hexadecimal digits. Raises CheckpointError for a file that cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    tensors = sorted(files.tensors.items())
    for name, entry in tensors:
        digest.update(f"{name} {entry.dtype} {entry.shape}\n".encode())
    step = -(-len(tensors) // SAMPLED_TENSORS) or 1
    for _, entry in tensors[::step]:
        try:
            with entry.file.open("rb") as stream:
                stream.seek((entry.start + entry.end) // 2)
                digest.update(stream.read(min(SAMPLED_BYTES, entry.end - (entry.start + entry.end) // 2)))
        except OSError as error:
            raise CheckpointError(f"cannot read {entry.file}: {error}") from error
    return digest.hexdigest()
