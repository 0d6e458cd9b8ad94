"""The exporter as a service: its routes, what it tells of itself, and how it starts and ends."""

from __future__ import annotations

import gzip
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.metrics_core import Metric

from fastmap.prometheus.check import checked
from fastmap.prometheus.collector import MapCollector
from fastmap.prometheus.http import Answer, Limits, Request, plain
from fastmap.prometheus.logs import logged
from fastmap.prometheus.server import Connection, Server
from fastmap.prometheus.worker import Worker

LISTEN = "127.0.0.1:9435"

_log = logging.getLogger(__name__)

_PAGE = b"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>fastmap exporter</title></head>
<body><h1>fastmap exporter</h1><p>BPF maps as Prometheus metrics.</p><ul>
<li><a href="/metrics">/metrics</a></li>
<li><a href="/-/healthy">/-/healthy</a>: it runs</li>
<li><a href="/-/ready">/-/ready</a>: a map has been opened</li>
</ul></body></html>
"""


def _formats() -> frozenset[str]:
    """Return the content types that there are.

    A client's words come back in others: each would be rendered for itself.
    """
    accepted = ["", "application/openmetrics-text"]
    for name in ("text/plain", "application/openmetrics-text"):
        for escaping in ("", ";escaping=allow-utf-8", ";escaping=underscores", ";escaping=dots",
                         ";escaping=values"):
            accepted.append(f"{name};version=1.0.0{escaping}")
    return frozenset(choose_encoder(each)[1] for each in accepted)


_FORMATS = _formats()


class Form(NamedTuple):
    """How metrics are asked for."""

    type: str
    gzip: bool
    names: tuple[str, ...]


def _form(request: Request) -> tuple[Form, Callable[[Any], bytes]]:
    encode, kind = choose_encoder("")
    try:
        wanted = choose_encoder(request.headers.get("accept", ""))
        if wanted[1] in _FORMATS:
            encode, kind = wanted
    except Exception as error:  # of versions that are none: of several types
        _log.debug("%r", error)
    names = parse_qs(request.query, max_num_fields=1000).get("name[]", [])
    zipped = gzip_accepted(request.headers.get("accept-encoding", ""))
    return Form(kind, zipped, tuple(sorted(set(names)))), encode


class Service:
    """Serves the metrics of a declaration.

    Parameters
    ----------
    config : path
        The YAML file of the declaration.
    listeners : sequence of socket
    limits : Limits
        Bounds on clients.

    Raises
    ------
    ValueError, OSError
        As `MapCollector`. The listeners are the caller's then.
    """

    def __init__(self, config: str, listeners: Sequence[socket.socket],
                 limits: Limits = Limits()) -> None:  # noqa: B008
        self._config = config
        self._ready = False
        self._stale = False
        self._reloaded = True, time.time()
        self._collector = MapCollector(config)
        self.server = Server(listeners, self._answer, limits, self._tick)
        try:
            self._registry = self._registry_of(self._collector)
        except ValueError:
            self.server.close()
            raise
        self._worker = Worker(self.server.deliver)
        self._routes: dict[str, Callable[[Request, Connection], Answer | None]] = {
            "/": lambda *_: Answer(HTTPStatus.OK, _PAGE, "text/html; charset=utf-8"),
            "/metrics": self._metrics,
            "/-/healthy": lambda *_: plain(HTTPStatus.OK),
            "/-/ready": self._readiness,
        }

    def run(self) -> None:
        """Serve until `stop`."""
        self.server.run()

    def close(self) -> None:
        """Close the sockets, after `run`; work that is going on has a second to end."""
        self._worker.stop(1.0)
        self.server.close()

    def stop(self) -> None:
        """End `run` once answers under way are out; called again, at once."""
        self.server.stop()

    def reload(self) -> None:
        """Read the declaration again, soon; where it is wrong, that before stays."""
        self._stale = True
        self.server.wake()

    def _tick(self) -> None:
        if self._stale:  # not asked for by the signal's handler: it may have interrupted the asking
            self._stale = False
            self._worker.ask("reload", self._reload)

    def _reload(self) -> Answer:
        try:
            collector = MapCollector(self._config, before=self._collector)
            self._registry = self._registry_of(collector)
        except Exception as error:  # whatever is wrong with it, it is not to end the service
            self._reloaded = False, self._reloaded[1]
            for line in self._wrong() or [str(error) or repr(error)]:
                _log.error("%s", line)
            _log.error("%s was not reloaded: the declaration before stays", self._config)
        else:
            self._collector = collector
            self._reloaded = True, time.time()
            _log.info("%s was reloaded", self._config)
        return plain(HTTPStatus.OK)

    def _wrong(self) -> list[str]:
        """Return all that is wrong in the declaration, as far as its file tells."""
        try:
            return checked(self._config)
        except OSError:
            return []

    # ---- the routes ----

    def _answer(self, request: Request, connection: Connection) -> Answer | None:
        route = self._routes.get(request.path)
        if route is None:
            return plain(HTTPStatus.NOT_FOUND)
        if request.method not in ("GET", "HEAD"):
            return plain(HTTPStatus.METHOD_NOT_ALLOWED, ("Allow", "GET, HEAD"))
        return route(request, connection)

    def _metrics(self, request: Request, connection: Connection) -> Answer | None:
        try:
            form, encode = _form(request)
        except ValueError:
            return plain(HTTPStatus.BAD_REQUEST)
        # Names are a client's own, and so many forms: whole scrapes go first.
        self._worker.ask(form, partial(self._rendered, form, encode), connection,
                         later=bool(form.names))
        return None

    def _rendered(self, form: Form, encode: Callable[[Any], bytes]) -> Answer:
        registry: Any = self._registry
        if form.names:
            registry = registry.restricted_registry(form.names)
        body = encode(registry)
        if not form.gzip:
            return Answer(HTTPStatus.OK, body, form.type)
        return Answer(HTTPStatus.OK, gzip.compress(body), form.type,
                      (("Content-Encoding", "gzip"),))

    def _readiness(self, request: Request, connection: Connection) -> Answer | None:
        if self._ready:
            return plain(HTTPStatus.OK)
        self._worker.ask("ready", self._opened, connection)
        return None

    def _opened(self) -> Answer:
        self._ready = self._ready or self._collector.opened()
        return plain(HTTPStatus.OK if self._ready else HTTPStatus.SERVICE_UNAVAILABLE)

    # ---- what it tells of itself ----

    def _registry_of(self, collector: MapCollector) -> CollectorRegistry:
        # Those that do not describe themselves are collected once: doubles are to be refused.
        registry = CollectorRegistry(auto_describe=True)
        registry.register(collector)
        ProcessCollector(registry=registry)
        registry.register(_Own(self))
        return registry

    def told(self) -> Iterator[Metric]:
        """Yield the metrics about the service itself."""
        present = Metric("fastmap_exporter_connections", "Connections that are open.", "gauge")
        present.add_sample(present.name, {}, len(self.server.connections))
        yield present
        for name, text, counts in (
            ("refused", "New connections that there was no room for.", self.server.refused),
            ("dropped", "Connections that were closed because the client was slow, or for a new "
             "one.", self.server.dropped),
        ):
            metric = Metric(f"fastmap_exporter_connections_{name}", text, "counter")
            for why, count in counts.items():
                metric.add_sample(f"{metric.name}_total", {"why": why}, count)
            yield metric
        good, last = self._reloaded
        for name, text, value in (
            ("successful", "Whether the last declaration that was read was right.", float(good)),
            ("success_timestamp_seconds", "When a right declaration was read last.", last),
        ):
            metric = Metric(f"fastmap_exporter_config_last_reload_{name}", text, "gauge")
            metric.add_sample(metric.name, {}, value)
            yield metric


class _Own:
    """The collector of a service's own metrics."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        return self._service.told()


# ---- the command ---------------------------------------------------------------------------------


def _address(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{listen!r} is no HOST:PORT, such as {LISTEN}")
    return host.strip("[]") or "0.0.0.0", int(port)


def _listening(host: str, port: int) -> socket.socket:
    family, kind, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(socket.SOMAXCONN)
    except OSError:
        sock.close()
        raise
    return sock


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"


@contextmanager
def _signals(service: Service) -> Iterator[None]:
    """Have signals reach the service meanwhile: they wake its loop, whatever it waits for."""
    handlers: dict[signal.Signals, Callable[..., None]] = {
        signal.SIGINT: lambda *_: service.stop(), signal.SIGTERM: lambda *_: service.stop(),
        signal.SIGHUP: lambda *_: service.reload()}
    waker = signal.set_wakeup_fd(service.server.waker.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        signal.set_wakeup_fd(waker)
        for number, handler in before.items():
            signal.signal(number, handler)


def serve(config: str, listen: str = LISTEN, once: bool = False,
          log_format: str = "text") -> int:
    """Serve the metrics that a declaration tells of, until SIGINT or SIGTERM.

    SIGHUP has the declaration read again. Returns the exit status. It is for the main thread,
    whose signals it takes meanwhile.

    Parameters
    ----------
    config : str
        The YAML file of the declaration.
    listen : str
        ``HOST:PORT``; port 0 takes any.
    once : bool
        Print them once instead.
    log_format : str
        How the log on stderr is written: "text" or "json".
    """
    with logged(log_format):
        return _served(config, listen, once)


def _served(config: str, listen: str, once: bool) -> int:
    try:
        host, port = _address(listen)
        if once:
            registry = CollectorRegistry()
            registry.register(MapCollector(config))
            sys.stdout.write(generate_latest(registry).decode())
            return 0
        listener = _listening(host, port)
        try:
            service = Service(config, [listener])
        except BaseException:
            listener.close()
            raise
    except (OSError, ValueError, ImportError) as error:
        print(f"fastmap exporter: {error}", file=sys.stderr)
        return 1
    try:
        with _signals(service):
            _log.info("serving %s", _url(listener))
            service.run()
            _log.info("ended")
    finally:
        service.close()
    return 0
