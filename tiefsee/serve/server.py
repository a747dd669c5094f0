"""A server from its options: engine process, service, door, signals.

    start engine ─► listen ─► (SIGTERM: refuse new ones, finish what runs) ─► stop engine

The door opens before the engine is ready, so that probes are answered while weights load.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import Iterator

import uvicorn

from tiefsee.errors import ConfigError
from tiefsee.serve.app import App
from tiefsee.serve.options import ServeOptions

log = logging.getLogger("tiefsee.serve")

POLL_S = 0.05


class Server(uvicorn.Server):
    """uvicorn's, but signals are ours: they drain first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; ConfigError if there can be none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port or --host"
        ) from error


def check_tls(options: ServeOptions) -> None:
    """ConfigError for files that are no certificate and its key; nothing listens then."""
    if options.tls_certificate is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            options.tls_certificate,
            options.tls_key,
            password=lambda: b"",  # and never ask on the terminal
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{options.tls_certificate} and {options.tls_key} are no certificate with its key, in PEM and without a "
            f"password: {error}; give both files"
        ) from error


class Door:
    """An application on a socket, with an orderly end. Raises ConfigError if the address cannot be had."""

    def __init__(self, app: App, options: ServeOptions) -> None:
        self.app, self._options = app, options
        check_tls(options)
        self._socket = listen(options.host, options.port)
        self._server = Server(
            uvicorn.Config(
                app, log_config=None, access_log=False, server_header=False,
                http="httptools", loop="none", lifespan="off", timeout_keep_alive=75,
                ssl_certfile=options.tls_certificate, ssl_keyfile=options.tls_key,
                timeout_graceful_shutdown=5,
            )
        )  # fmt: skip
        self._leaving: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that it listens on; the chosen one if 0 was asked for."""
        return int(self._socket.getsockname()[1])

    async def serve(self) -> None:
        """Until a signal, or `leave`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(RuntimeError):  # not in a thread: there signals are somebody else's
                loop.add_signal_handler(number, self._signalled)
        await self._server.serve(sockets=[self._socket])

    async def started(self) -> None:
        while not self._server.started:
            await asyncio.sleep(POLL_S / 5)

    def _signalled(self) -> None:
        """The first signal drains; the second does not wait any longer."""
        if self._leaving is None:
            self._leaving = asyncio.ensure_future(self.leave())
        else:
            log.warning("second signal: leaving now")
            self._server.force_exit = self._server.should_exit = True

    async def leave(self) -> None:
        """Refuse new requests, wait for those that run, at most `drain_s`, then close."""
        self.app.service.draining = True
        loop, options = asyncio.get_running_loop(), self._options
        until = loop.time() + options.drain_s
        log.info("draining", extra={"fields": {"open_requests": self.app.open_requests, "at_most_s": options.drain_s}})
        while self.app.open_requests and loop.time() < until:
            await asyncio.sleep(POLL_S)
        if self.app.open_requests:
            log.warning("%d requests did not end in time and are cut off", self.app.open_requests)
        self._server.should_exit = True
