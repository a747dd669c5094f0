"""Finding a model: folders, hub downloads, safetensors headers and indexes. No torch."""

from tiefsee.files.find import ModelFiles, bundled_models, find_model
from tiefsee.files.fingerprint import fingerprint
from tiefsee.files.headers import TensorEntry, read_headers, read_index

__all__ = ["ModelFiles", "TensorEntry", "bundled_models", "find_model", "fingerprint", "read_headers", "read_index"]
