"""What is measured, and what the issues ask of it: one function per experiment, which takes one sample of one side.

The sides are Portico and `socketserver`; what is measured beside others, or by itself, is in `openings`. A sample is
one value per `Measure` of the experiment. Most start a process of their own, so that no sample sees what an earlier one
has left in memory.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from . import processes

__all__ = ["EXPERIMENTS", "Experiment", "Measure", "Plan"]

_IMPORTS = 7  # interpreters started per sample
_IMPORT = "import time; began = time.perf_counter(); import {}; print((time.perf_counter() - began) * 1000)"


@dataclass(frozen=True)
class Plan:
    """How long to measure."""

    seconds: float
    quick: bool


@dataclass(frozen=True)
class Measure:
    """A row of the table. `target` is what is asked for, from below or above by `more`.

    It is a ratio to the other side's value, and the value itself where there is no other side.
    """

    name: str
    unit: str
    more: bool = False
    """Whether more is better."""
    target: float | None = None

    def met(self, reached: float) -> bool | None:
        if self.target is None:
            return None
        return reached >= self.target if self.more else reached <= self.target


@dataclass(frozen=True)
class Experiment:
    """Measures that one sample yields together."""

    name: str
    measures: tuple[Measure, ...]
    sample: Callable[[str, Plan], Sequence[float]]
    needs: str = ""
    """The systems it can be run on, as `sys.platform` begins; empty for all."""
    sides: tuple[str, ...] = ("portico", "socketserver")
    """Ours, and whom it is compared with, if there is anybody; what `sample` is told."""
    also_needs: Callable[[], str | None] = lambda: None
    """What else keeps it from being measured here, in words; None if nothing does."""

    def lacking(self) -> str | None:
        return self.also_needs() if sys.platform.startswith(self.needs) else "cannot be measured on this system"


def _shutdown(module: str, plan: Plan) -> list[float]:
    times = 2 if plan.quick else 5
    return [processes.run("server.py", module, "ThreadingTCPServer", "shutdown", times)["shutdown"]]


def _idle(module: str, plan: Plan) -> list[float]:
    seconds = plan.seconds if plan.quick else 2.0
    return [processes.run("server.py", module, "ThreadingTCPServer", "idle", seconds)["wakeups"]]


def _one(class_name: str, module: str, plan: Plan) -> list[float]:
    return [processes.run("server.py", module, class_name, "one", 500 if plan.quick else 5000)["took"]]


def _load(class_name: str, kind: str, module: str, plan: Plan) -> dict[str, float]:
    with processes.serving(module, class_name) as server:
        warm_up = processes.load(kind, server.port, plan.seconds / 10)
        answer = processes.load(kind, server.port, plan.seconds)
        if answer["failures"]:
            print(f"  {module}.{class_name}: {answer['failures']:.0f} exchanges failed", file=sys.stderr)
        answer["all"] = warm_up["exchanges"] + answer["exchanges"]
        answer.update(server.end())
    return answer


def _rate(class_name: str, kind: str, module: str, plan: Plan) -> list[float]:
    return [_load(class_name, kind, module, plan)["rate"]]


def _fork(module: str, plan: Plan) -> list[float]:
    answer = _load("ForkingTCPServer", "connections", module, plan)
    exchanges = max(1.0, answer["all"])
    figures = ("own_cpu", "children_cpu", "own_faults", "children_faults")
    own_cpu, children_cpu, own_faults, children_faults = (answer[name] / exchanges for name in figures)
    return [answer["rate"], own_cpu * 1e6, children_cpu * 1e6, own_faults, children_faults]


def _import(module: str, plan: Plan) -> list[float]:
    times = 2 if plan.quick else _IMPORTS
    processes.python(f"import {module}")  # writes the .pyc files, if there are none
    bare = [float(processes.python(_IMPORT.format(module))) for _ in range(times)]
    whole = [processes.seconds_of(f"import {module}") * 1000 for _ in range(times)]
    return [statistics.median(bare), statistics.median(whole)]


def _memory(module: str, plan: Plan) -> list[float]:
    imported = float(processes.python(_PEAK.format(module)))
    with processes.serving(module, "ThreadingTCPServer") as server:
        time.sleep(0.1)  # it has printed its port, and enters its loop
        return [imported / 1024, server.end()["peak"] / 1024]


# The server script is there for its peak_memory(); importing it costs either module the same.
_PEAK = f"import sys; sys.path.insert(0, {str(processes.HERE)!r}); import {{}}, server; print(server.peak_memory())"

_FASTER = partial(Measure, unit="/s", more=True)

EXPERIMENTS = (
    Experiment("shutdown", (Measure("shutdown() of an idle server", "ms", target=1.0),), _shutdown),
    Experiment("idle", (Measure("idle wake-ups", "/s", target=1.0),), _idle),
    Experiment(
        "thread",
        (_FASTER("ThreadingTCPServer connect-echo-close", target=1.0),),
        partial(_rate, "ThreadingTCPServer", "connections"),
        needs="linux",
    ),
    Experiment(
        "fork",
        (
            _FASTER("ForkingTCPServer connect-echo-close", target=1.0),
            Measure("- processor time per request, parent", "us"),
            Measure("- processor time per request, child", "us"),
            Measure("- page faults per request, parent", ""),
            Measure("- page faults per request, child", ""),
        ),
        _fork,
        needs="linux",
    ),
    Experiment(
        "udp",
        (_FASTER("UDPServer echo, 64 bytes", target=1.7),),
        partial(_rate, "UDPServer", "datagrams"),
        needs="linux",
    ),
    Experiment("one", (Measure("UDPServer handle_request()", "us"),), partial(_one, "UDPServer")),
    Experiment("one-tcp", (Measure("TCPServer handle_request()", "us"),), partial(_one, "TCPServer")),
    Experiment(
        "import",
        (Measure("import statement", "ms", target=1.5), Measure("python -c 'import ...'", "ms", target=1.5)),
        _import,
    ),
    Experiment(
        "memory",
        (Measure("peak memory, imported", "MiB", target=1.5), Measure("peak memory, serving", "MiB", target=1.5)),
        _memory,
    ),
)
