"""From disk to device and back: published names, packed formats, one tensor at a time."""

from tiefsee.checkpoint.load import LoadReport, load_network
from tiefsee.checkpoint.save import save_network

__all__ = ["LoadReport", "load_network", "save_network"]
