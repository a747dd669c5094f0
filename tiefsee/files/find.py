"""From a name to the files of a model: a folder, a config.json, a bundled model, or a hub id."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tiefsee.errors import ConfigError, ModelNotFound
from tiefsee.files.headers import TensorEntry, read_index

BUNDLED = Path(__file__).parent.parent / "models"
HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
SMALL_FILES = ["config.json", "generation_config.json", "tokenizer*.json", "chat_template.jinja", "encoding/*.py"]
WEIGHT_FILES = ["*.safetensors", "*.safetensors.index.json"]


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk. `tensors` reads the headers of its safetensors when it is first asked for."""

    folder: Path
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]

    @cached_property
    def tensors(self) -> dict[str, TensorEntry]:
        return read_index(self.folder)


def find_model(model: str | Path, *, config_only: bool = False) -> ModelFiles:
    """Open a model by a folder, a config.json, the name of a bundled model, or a hub id.

    A hub id is downloaded through huggingface_hub, or taken from its cache (with `config_only` without the
    weights). Raises ModelNotFound, and ConfigError for a config.json that is no JSON object.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return _open(path)
    if path.is_file():
        if path.suffix != ".json":
            raise ModelNotFound(f"{path} is a file; needed a model's folder or its config.json")
        return ModelFiles(path.parent, _read_object(path), {})
    name = str(model)
    if (BUNDLED / name / "config.json").is_file() and "/" not in name:
        return _open(BUNDLED / name)
    if HUB_ID.fullmatch(name) and not name.startswith("."):
        return _open(_from_hub(name, config_only))
    raise ModelNotFound(
        f"no model {name!r}: there is no such folder or config.json, it is no hub id (ORGANISATION/NAME), and the "
        f"bundled models are {', '.join(bundled_models()) or 'none'}"
    )


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def _open(folder: Path) -> ModelFiles:
    config = folder / "config.json"
    if not config.is_file():
        names = sorted(path.name for path in folder.iterdir())
        held = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"
        raise ModelNotFound(f"{folder} has no config.json (it holds {held}); needed the folder of a checkpoint")
    generation = folder / "generation_config.json"
    return ModelFiles(folder, _read_object(config), _read_object(generation) if generation.is_file() else {})


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}; it must be a JSON object; download it again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a {type(value).__name__}; it must be a JSON object; download it again")
    return value


def _from_hub(name: str, config_only: bool) -> Path:
    """The folder of a hub id; the cache alone where the hub cannot be reached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = SMALL_FILES if config_only else SMALL_FILES + WEIGHT_FILES
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise ModelNotFound(
            f"{name} is not in the local hub cache, and the hub cannot be reached; connect, or pass a folder"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFound(f"cannot get {name} from the hub: {reason}; check the name, or pass a folder") from error
