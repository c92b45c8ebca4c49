"""Settings of auxiliary models: judges, readers, user simulators, each behind an OpenAI-compatible endpoint."""

from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from asearch.errors import ConfigError

_NAME_CHARS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")


class AuxiliarySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model, `[auxiliary.NAME]` in a recipe. What it answers shapes rewards, so all of it is part of the recipe's hash."""

    base_url: str
    """With its version, as servers give it: `http://127.0.0.1:30000/v1`."""
    model: str
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; unset sends none. The key itself never stands in settings."""
    timeout_s: float = 120.0
    """For one call, with its retries and the wait for its turn."""
    max_concurrency: int = 16
    max_tries: int = 5
    temperature: float = 0.0
    max_tokens: int = 1024
    """Tokens of an answer at most."""


def check_auxiliary(models: Mapping[str, AuxiliarySettings]) -> None:
    """Raises ConfigError, with the path of the setting, for values that cannot work."""
    for name, model in models.items():
        path = f"auxiliary.{name}"
        _check_base_url(path, model.base_url)
        if not model.model:
            raise ConfigError(f"{path}.model is empty: name a model of the endpoint")
        variable = model.api_key_env
        if variable is not None and (not variable or not set(variable) <= _NAME_CHARS or variable[0].isdigit()):
            # Whoever puts the key itself here must not find it in an error message.
            raise ConfigError(f"{path}.api_key_env must be the name of an environment variable, e.g. JUDGE_API_KEY, not the key")
        if not 0 < model.timeout_s < float("inf"):
            raise ConfigError(f"{path}.timeout_s must be a number of seconds above 0, got {model.timeout_s}")
        if not 0 <= model.temperature <= 2:
            raise ConfigError(f"{path}.temperature must be from 0 to 2, got {model.temperature}")
        for key in ("max_concurrency", "max_tries", "max_tokens"):
            if getattr(model, key) < 1:
                raise ConfigError(f"{path}.{key} must be at least 1, got {getattr(model, key)}")


def _check_base_url(path: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_bare = not parts.query and not parts.fragment and "@" not in parts.netloc
    except ValueError:
        is_good = is_bare = False
    if not is_good:
        raise ConfigError(f"{path}.base_url is not an address: write it as http://HOST:PORT/v1")
    if not is_bare:
        raise ConfigError(f"{path}.base_url may hold no user, password, query or fragment: keys come from api_key_env")
