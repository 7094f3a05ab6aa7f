"""The command `portico`: `serve` a handler from a shell, `run` an unmodified program on Portico, list the `settings`.

Turns words into calls and errors into one line; all else is the library's. Exit status: 0 after a clean end, 2 for
anything wrong on the command line or in what it names, 3 if a second signal cut requests short, else the program's
own (`run`).
"""

from __future__ import annotations

import argparse
import importlib
import os
import socket
import sys
from contextlib import ExitStack
from functools import partial

from . import _budget, _program, _sockets, _tls_options, presets, servers, settings
from ._addresses import describe, parse
from ._base import BaseServer
from ._install import install
from ._running import StopsOnSignals
from ._scopes import RULES, misplaced
from ._serving import serve_together
from ._system import System
from .errors import PorticoError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

__all__ = ["main"]

_PREFIXES = {"thread": "Threading", "fork": "Forking", "green": "Green", "async": "Async", "none": ""}
_CLASSES = {
    "tcp": "TCPServer",
    "tls": "TCPServer",
    "udp": "UDPServer",
    "unix": "UnixStreamServer",
    "tls-unix": "UnixStreamServer",
    "unix-dgram": "UnixDatagramServer",
}
_DATAGRAMS = ("udp", "unix-dgram")
_ENCRYPTED = ("tls", "tls-unix")


class CommandError(Exception):
    """What the user asked for cannot be done; the message is all there is to say."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status. `run` may leave with the program's own SystemExit."""
    options = _parser().parse_args(arguments)
    try:
        action: Callable[[argparse.Namespace], int] = options.action
        return action(options)
    except (CommandError, PorticoError) as error:
        print(f"portico: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="portico", description="Network servers from a handler class.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("serve", help="serve a handler until SIGINT or SIGTERM")
    command.add_argument("handler", metavar="MODULE:HANDLER", help="a handler class, in this folder or installed")
    command.add_argument(
        "addresses", metavar="ADDRESS", nargs="+",
        help="tcp://HOST:PORT, tls://HOST:PORT, udp://HOST:PORT (IPv6: [::1]), unix:PATH, tls-unix:PATH, "
        "unix-dgram:PATH, fd://N, systemd://NAME; port 0 is any free one, unix:@NAME an abstract name",
    )  # fmt: skip
    command.add_argument("--concurrency", choices=_PREFIXES, default="thread", help="a %(choices)s per request")
    command.add_argument(
        "--set", dest="values", metavar="NAME=VALUE", action="append", default=[],
        help="a setting, see 'portico settings'; may be repeated",
    )  # fmt: skip
    command.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"),
        help="what is told on stderr; info says why a client was not let in (default: warning)",
    )  # fmt: skip
    _tls_options.add(command)
    command.set_defaults(action=_serve)

    command = commands.add_parser("run", help="run an unmodified program with Portico as its socketserver")
    command.add_argument(
        "-m", dest="module", action="store_true", help="the program is a module's name, as in python -m"
    )
    command.add_argument(
        "--concurrency", choices=("thread", "green"), default="thread",
        help="green: the program's threading servers run their requests in green threads",
    )  # fmt: skip
    command.add_argument("--stdlib-compat", action="store_true", help="with the setting stdlib_compat on")
    command.add_argument("program", metavar="PROGRAM")
    command.add_argument("rest", metavar="ARG", nargs=argparse.REMAINDER, help="the program's own arguments")
    command.set_defaults(action=_run)

    command = commands.add_parser("settings", help="list every setting, its default and its reason")
    command.set_defaults(action=_settings)
    return parser


# -- portico serve


def _serve(options: argparse.Namespace) -> int:
    handler = _handler(options.handler)
    values = dict(_assignment(text) for text in options.values)
    tls = _tls_options.read(options)
    _check_tls(options.addresses, values, tls)
    _check_fitting(_kinds(options), values)
    if options.log_level is not None:
        _show_log(options.log_level)
    running: list[BaseServer[Any]] = []
    with StopsOnSignals(running, last=True, reloads=tls is not None) as signals, ExitStack() as stack:
        for address in options.addresses:
            encrypted = parse(address).kind in _ENCRYPTED or values.get("starttls")
            given = {**values, "tls": tls} if encrypted else values
            safe = partial(_safe, sum(parse(address).kind not in _DATAGRAMS for address in options.addresses))
            running.append(stack.enter_context(_server(address, handler, options.concurrency, given, safe=safe)))
            _refuse_the_same_socket(running, address)
        # What sockets that were handed down are for is known only now.
        _check_fitting(list(map(type, running)), {name: values[name] for name in values.keys() & RULES})
        for server in running:
            encrypted = server.tls is not None and not server.starttls
            print(f"serving {options.handler} on {describe(server.socket, encrypted=encrypted)}", flush=True)
        if values.get("access_log"):
            _show_access_log()
        told = max(running, key=lambda server: (server.tls is not None, server.socket_type == socket.SOCK_STREAM))
        print(f"limits: {_budget.told(told)}; see 'portico settings'", flush=True)
        for server in running:
            if without := sorted(values.keys() & RULES - _fitting(type(server), values).keys()):
                print(f"not for {describe(server.socket)}: {', '.join(without)}", flush=True)
        signals.serve(serve_together)
    return signals.status


def _check_tls(addresses: Sequence[str], values: dict[str, Any], tls: Any) -> None:
    kinds = [parse(address).kind for address in addresses]
    encrypted = [address for address, kind in zip(addresses, kinds, strict=True) if kind in _ENCRYPTED]
    if encrypted and tls is None:
        raise CommandError(f"{encrypted[0]} needs a certificate: --tls-cert FILE, and --tls-key FILE for its key")
    if values.get("starttls") and (tls is None or encrypted):
        wrong = "--tls-cert FILE" if tls is None else f"tcp:// or unix:, not {encrypted[0]}, which is encrypted at once"
        raise CommandError(f"--set starttls={values['starttls']} needs {wrong}")
    if tls is not None and not (encrypted or values.get("starttls")):
        raise CommandError("--tls-cert: no address is encrypted: give tls://HOST:PORT, tls-unix:PATH or starttls")


def _show_log(level: str) -> None:
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("portico")
    logger.addHandler(handler)
    logger.setLevel(level.upper())


def _show_access_log() -> None:
    """Its lines go to stdout, where a command's own lines go."""
    import logging

    logger = logging.getLogger("portico.access")
    logger.addHandler(logging.StreamHandler(sys.stdout))
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _safe(number: int, server_class: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The limits of each of so many servers, where none are set: its share of this process's descriptors and memory."""
    if server_class.socket_type != socket.SOCK_STREAM:
        return {}
    found = _budget.defaults(server_class, number, System(), given)
    return {name: value for name, value in found.items() if name not in given or name in _budget.BELOW}


def _handler(name: str) -> Any:
    """Import `module:Handler`, from the current folder first."""
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise CommandError(f"{name!r} names no handler: give MODULE:HANDLER, such as examples.echo:Echo")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise CommandError(f"cannot import {module_name!r}: {type(error).__name__}: {error}") from None
    handler = getattr(module, attribute, None)
    if handler is None:
        raise CommandError(f"module {module_name!r} has no {attribute!r}")
    if not (isinstance(handler, type) and callable(getattr(handler, "handle", None))):
        raise CommandError(f"{name} is no handler: it must be a class with a handle() method, see BaseRequestHandler")
    return handler


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if name not in settings.ALL:
        raise CommandError(f"--set {text!r}: there is no setting {name!r}; {settings.alternatives(name, settings.ALL)}")
    if not equals:
        raise CommandError(f"--set {text!r}: give NAME=VALUE, {name} is {settings.ALL[name].kind.allowed}")
    return name, settings.ALL[name].parse(value)


def _server(
    address: str, handler: Any, concurrency: str, values: dict[str, Any], *, safe: Callable[[Any, Any], dict[str, Any]]
) -> BaseServer[Any]:
    """The server for one address, bound, with these values and `safe` ones beside them. Errors name the address."""
    endpoint = parse(address)
    handed_down = _sockets.existing(endpoint.address, System())
    kind = endpoint.kind if handed_down is None else describe(handed_down).partition(":")[0]
    server_class = _server_class(kind, concurrency)
    given = _fitting(server_class, values)
    try:
        server: BaseServer[Any] = server_class(
            handed_down or endpoint.address, handler, **{**given, **safe(server_class, given)}
        )
    except OSError as error:
        raise CommandError(error.strerror or str(error)) from None
    return server


def _server_class(kind: str, concurrency: str) -> Any:
    name = _PREFIXES[concurrency] + _CLASSES[kind]
    found = getattr(_module_of(concurrency), name, None)
    if found is None:
        raise CommandError(f"{name} needs what this system does not have; choose another address or --concurrency")
    return found


def _module_of(concurrency: str) -> Any:
    if concurrency not in ("green", "async"):
        return servers if concurrency == "none" else presets
    try:
        return importlib.import_module(f"{__package__}.{concurrency}_presets")  # with asyncio: the others do without
    except ImportError as error:
        raise CommandError(f"--concurrency {concurrency}: {error}; pip install greenlet") from None


def _fitting(server_class: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Of the settings given, those that this kind of server has: one command line may start several kinds."""
    return {
        name: value
        for name, value in values.items()
        if hasattr(server_class, name) and _unfit(server_class, name, values) is None
    }


def _unfit(server_class: Any, name: str, values: dict[str, Any]) -> str | None:
    return misplaced(name, server_class, family=server_class.address_family, given=values)


def _check_fitting(kinds: Sequence[Any], values: dict[str, Any]) -> None:
    """Raise for a setting that is of no use to any of the servers asked for."""
    for name in sorted(set(values).difference(*(_fitting(kind, values) for kind in kinds))):
        why = next((_unfit(kind, name, values) for kind in kinds if hasattr(kind, name)), None)
        said = f"{name} {why}" if why else "none of the servers asked for has such a setting"
        raise CommandError(f"--set {name}: {said}")


def _kinds(options: argparse.Namespace) -> list[Any]:
    """The classes of the servers asked for; of a socket handed down only opening it tells, so then any it may be."""
    kinds = [parse(address).kind for address in options.addresses]
    every = [kind for kind in kinds if kind in _CLASSES] if set(kinds) <= set(_CLASSES) else list(_CLASSES)
    return [_server_class(kind, options.concurrency) for kind in every]


def _refuse_the_same_socket(running: Sequence[BaseServer[Any]], address: str) -> None:
    *others, newest = running
    if any(other.fileno() == newest.fileno() for other in others):
        newest.socket.detach()  # the other's to close
        raise CommandError(f"{address} names a socket that another address has named already")


# -- portico run


def _run(options: argparse.Namespace) -> int:
    """Run a program as `python` would; its exit status is ours."""
    install(stdlib_compat=options.stdlib_compat, concurrency=options.concurrency)
    if options.module:
        found = _program.find_module(options.program)
        if found is None:
            raise CommandError(f"there is no module {options.program!r}")
        _program.run_module(found, options.rest)
    elif os.path.exists(options.program):
        _program.run_script(options.program, options.rest)
    else:
        raise CommandError(f"there is no program {options.program!r} (with -m, a module's name is expected)")
    return 0


# -- portico settings


def _settings(options: argparse.Namespace) -> int:
    for line in _table():
        print(line)
    return 0


def _table() -> Iterator[str]:
    width = max(len(name) for name in settings.ALL)
    for setting in settings.ALL.values():
        default = "none" if setting.default is None else str(setting.default).lower()
        yield f"{setting.name:{width}}  {default:>6} {setting.unit:12} {setting.reason}"
        yield f"{'':{width}}  {'':>6} {'':12} {setting.kind.allowed}"
