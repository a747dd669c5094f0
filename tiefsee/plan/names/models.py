"""A model by name, for planning: a preset, or whatever has a config.json."""

from __future__ import annotations

from tiefsee.errors import ModelNotFound
from tiefsee.spec import ModelSpec, model_spec, preset, preset_names


def find_spec(model: str) -> ModelSpec:
    """A preset by short or hub name, which nothing is downloaded for; else a folder, a config.json or a hub id.

    Raises ModelNotFound, ConfigError.
    """
    try:
        return preset(model)
    except ModelNotFound:
        from tiefsee.files import find_model

        try:
            return model_spec(find_model(model, config_only=True).config)
        except ModelNotFound as error:
            if "/" in model:
                raise
            raise ModelNotFound(f"{error}; presets are {', '.join(preset_names())}") from None
