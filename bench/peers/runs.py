"""Takes the samples: a server on one core, the load on the other, the peers in turn, round by round.

Every sample has a server process of its own, so that none sees what an earlier one has left.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable

from .. import processes
from . import build, encryption, machine, roster
from .cases import Case, Plan, Sample
from .results import Result

__all__ = ["Unable", "check", "lacking", "measure", "sample"]

_LIMIT = 60.0  # seconds over what the load is asked to take: it opens connections, and waits for the last answers


class Unable(Exception):
    """A peer that cannot be measured, and why."""


def server_command(peer: str, service: str) -> list[str]:
    if program := roster.named(peer).program:
        further = [str(encryption.certificate())] if service in roster.TLS else []
        return [str(build.FOLDER / program[0]), *program[1:], service, *further]
    return python_command(peer, service)


def python_command(peer: str, service: str) -> list[str]:
    return [sys.executable, "-m", f"{__package__}.serve", peer, service]


def shown(command: list[str]) -> str:
    """A command as one would type it in the project's folder."""
    words = ["python" if word == sys.executable else word for word in command]
    return " ".join(word.removeprefix(f"{machine.ROOT}/") for word in words)


def check(names: Iterable[str]) -> dict[str, str]:
    """Start each peer once: those that cannot be measured at all, and why."""
    unable = {}
    for name in names:
        try:
            with processes.started(server_command(name, roster.named(name).services[0])) as server:
                server.end()
        except (processes.NotServing, subprocess.SubprocessError, OSError) as error:
            unable[name] = str(error)
    return unable


def lacking(case: Case) -> str | None:
    """Why a case cannot be measured here by anybody, if so."""
    try:
        if case.program == "tls_load":
            encryption.ready()
    except encryption.CannotEncryptError as error:
        return str(error)
    return None


def sample(case: Case, peer: str, plan: Plan, cores: machine.Cores) -> Sample:
    """One run of the load on a fresh server."""
    load = [str(build.FOLDER / case.program), *case.load(plan)]
    try:
        with processes.started(server_command(peer, case.service), cores.server) as server:
            with processes.pinned(cores.load):
                process = subprocess.Popen(
                    [*load, "-p", str(server.port), "-S", str(server.process.pid)], stdout=subprocess.PIPE
                )
            output = processes.output_of(process, plan.seconds + plan.warm_up + _LIMIT)
            return {**json.loads(output), "server": server.end()}
    except (processes.NotServing, subprocess.SubprocessError, OSError, ValueError) as error:
        raise Unable(str(error) or type(error).__name__) from error


def measure(case: Case, peers: list[str], plan: Plan, told: dict[str, str]) -> Result:
    """All rounds of one case, told on stderr as they go. A peer that fails is left out from then on."""
    cores = machine.cores()
    rounds: list[dict[str, Sample]] = []
    left_out: dict[str, str] = {}
    for number in range(plan.rounds):
        rounds.append({})
        for peer in peers:
            if peer in left_out:
                continue
            line = f"{case.name} {number + 1}/{plan.rounds}  {peer:21}"
            try:
                taken = sample(case, peer, plan, cores)
            except Unable as error:
                left_out[peer] = str(error)
                print(f"{line}  left out: {error}", file=sys.stderr, flush=True)
                continue
            rounds[-1][peer] = taken
            print(f"{line}  {_summary(case, taken)}", file=sys.stderr, flush=True)
    return Result(
        case=case.name, made=time.strftime("%Y-%m-%d %H:%M"), plan=plan, rounds=rounds, left_out=left_out, told=told
    )


def _summary(case: Case, taken: Sample) -> str:
    values = [(figure, figure.read(taken)) for figure in case.figures]
    parts = [f"{figure.name} {value:.5g} {figure.unit}".rstrip() for figure, value in values if value is not None]
    if taken["errors"] or taken["stalled"]:
        parts.append(f"{taken['errors']} ERRORS ({taken['first_error']}), {taken['stalled']} stalled")
    return "  ".join(parts)
