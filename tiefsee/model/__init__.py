"""The DeepSeek network: one parametrised decoder from V2 to V4."""

from tiefsee.model.network import Hidden, Network

__all__ = ["Hidden", "Network"]
