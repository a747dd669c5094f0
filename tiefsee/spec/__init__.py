"""What a model is: sizes, layers, tensors and streams. Pure data, no torch."""

from tiefsee.spec.config import model_spec
from tiefsee.spec.model import ModelSpec
from tiefsee.spec.presets import preset, preset_names
from tiefsee.spec.streams import cache_streams
from tiefsee.spec.tensors import CheckpointTensor, checkpoint_tensors

__all__ = [
    "CheckpointTensor",
    "ModelSpec",
    "cache_streams",
    "checkpoint_tensors",
    "model_spec",
    "preset",
    "preset_names",
]
