"""A trained network as a checkpoint folder: published names, config, tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiefsee.checkpoint import save_network
from tiefsee.model import Network

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def export(network: Network, config: Mapping[str, Any], data: Path, out: Path) -> None:
    """Write `out` so that it can be served: weights in the config's dtype, what the tokenizer needs, defaults."""
    save_network(network, network.spec, config, out)
    for name in TOKENIZER_FILES:
        shutil.copyfile(data / name, out / name)
    eos = config.get("eos_token_id")
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": eos, "temperature": 0.8}, indent=2))
