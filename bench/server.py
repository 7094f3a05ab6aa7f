"""The serving process, a script of its own: `server.py MODULE CLASS serve | idle SECONDS | shutdown TIMES | one TIMES`.

MODULE is `portico` or `socketserver`; the handler echoes. Imports as little as it can, so that its memory is the
module's, and says what it measured as one line of JSON.

`serve` serves in the main thread, with no other thread, prints its port, and on SIGTERM prints its page faults and
processor seconds (own and children's, since the loop began) and its peak memory. `idle` and `shutdown` serve in a
thread and measure that. `one` measures requests that are handled one by one, without a loop.
"""

import os
import resource
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

# Raised on both sides, so that the length of the backlog (socketserver: 5) does not decide.
BACKLOG = 128


def make(module: Any, class_name: str) -> Any:
    """A server of the class named, on a free port, that echoes."""
    base: Any = getattr(module, class_name)
    datagrams = issubclass(base, module.UDPServer)

    class Stream(module.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.request.sendall(self.request.recv(1024))

    class Datagram(module.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            payload, sock = self.request
            sock.sendto(payload, self.client_address)

    class Server(base):  # type: ignore[misc]
        request_queue_size = BACKLOG

    return Server(("127.0.0.1", 0), Datagram if datagrams else Stream)


def peak_memory() -> int:
    """Peak resident set, KiB. Linux's ru_maxrss counts from before exec(), with whoever started us, so not that one."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)


def usage(who: int) -> tuple[int, float]:
    """Minor page faults and processor seconds so far."""
    used = resource.getrusage(who)
    return used.ru_minflt, used.ru_utime + used.ru_stime


def serve(server: Any) -> None:
    """Serve until SIGTERM, then say what it took. Ends in the signal handler: the loop's own end is not measured."""
    before = *usage(resource.RUSAGE_SELF), *usage(resource.RUSAGE_CHILDREN)

    def end(number: int, frame: Any) -> NoReturn:
        own = usage(resource.RUSAGE_SELF)
        try:
            while True:
                os.waitpid(-1, 0)
        except ChildProcessError:
            after = *own, *usage(resource.RUSAGE_CHILDREN)
        took = [b - a for a, b in zip(before, after, strict=True)]
        figures = '"own_faults": {}, "own_cpu": {}, "children_faults": {}, "children_cpu": {}'.format(*took)
        say(f'{{{figures}, "peak": {peak_memory()}}}')
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    say(str(server.server_address[1]))
    server.serve_forever()


def idle(server: Any, seconds: float) -> None:
    """Voluntary context switches a second of a process whose only work is an idle server."""
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    time.sleep(0.2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    time.sleep(seconds)
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before - 1  # one is the sleep's own
    server.shutdown()
    serving.join()
    say(f'{{"wakeups": {max(0, switches) / seconds}}}')


def shutdown(server: Any, times: int) -> None:
    """Milliseconds that `shutdown()` takes, asked at evenly spread moments of a polling interval (0.5 s)."""
    taken = []
    for number in range(times):
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        time.sleep(0.05 + 0.5 * (number + 0.5) / times)
        began = time.perf_counter()
        server.shutdown()
        taken.append((time.perf_counter() - began) * 1000)
        serving.join()
    taken.sort()
    middle = len(taken) // 2
    say(f'{{"shutdown": {(taken[middle] + taken[~middle]) / 2}}}')


def one(server: Any, times: int) -> None:
    """Microseconds that `handle_request()` takes when its request is there already."""
    taken = []
    for _ in range(times):
        with socket.socket(server.address_family, server.socket_type) as client:
            client.connect(server.server_address)
            client.send(bytes(64))
            began = time.perf_counter()
            server.handle_request()
            taken.append((time.perf_counter() - began) * 1e6)
            client.recv(64)
    taken.sort()
    say(f'{{"took": {taken[times // 2]}}}')


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    module_name, class_name, kind, *number = sys.argv[1:]
    with make(__import__(module_name), class_name) as the_server:
        if kind == "serve":
            serve(the_server)
        elif kind == "idle":
            idle(the_server, float(number[0]))
        elif kind == "shutdown":
            shutdown(the_server, int(number[0]))
        else:
            one(the_server, int(number[0]))
