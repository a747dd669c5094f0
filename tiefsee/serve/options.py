"""What `tiefsee serve` is started with."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from tiefsee.errors import ConfigError
from tiefsee.serve.admission import QueueLimits
from tiefsee.serve.app import DoorOptions


@dataclass(frozen=True)
class ServeOptions:
    """Address, model names, keys and limits. Checked on construction."""

    host: str = "127.0.0.1"
    port: int = 8000
    names: tuple[str, ...] = ()
    chat_format: str = "auto"
    key_file: Path | None = None
    plain_keys: tuple[str, ...] = ()
    salt_per_key: bool = False
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    deadline_s: float | None = None
    drain_s: float = 30.0
    usd_per_hour: float | None = None
    log_format: str = "text"
    otel: bool = False
    queue: QueueLimits = field(default_factory=QueueLimits)
    door: DoorOptions = field(default_factory=DoorOptions)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ConfigError(f"--port is {self.port}; needed 0 (any free one) to 65535")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("found one of --tls-certificate and --tls-key; needed are both")
        for path in (self.tls_certificate, self.tls_key):
            if path is not None and not path.is_file():
                raise ConfigError(f"{path} is not there; needed is a file in PEM format")

    @property
    def is_public(self) -> bool:
        """Whether others than this machine can reach it."""
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"

    @property
    def has_keys(self) -> bool:
        return self.key_file is not None or bool(self.plain_keys)
