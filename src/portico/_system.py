"""The seam to the operating system: processes, clock, signals and environment, behind one object.

Whoever forks, waits, looks at the clock, the signals or the environment goes through a `System`, so that tests hand in
another instead of patching `os` or sleeping. Sockets are not here: tests use real ones.
"""

from __future__ import annotations

import gc
import os
import select
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from types import FrameType
    from typing import Any, Final, NoReturn

__all__ = ["System", "frame_of"]

_FORK_WARNS: Final = sys.version_info >= (3, 12)
# Matches this module alone. Made by hand, as Python makes its own defaults: warnings.filterwarnings() imports `re`.
_QUIET_FORK: Final = ("ignore", None, DeprecationWarning, __name__, 0)


def frame_of(thread: int) -> FrameType | None:
    """The innermost frame that a thread is in at this moment; None if there is no such thread.

    Python 3.11 makes frames into objects when somebody looks at them. If that sets off a collection, which lets the
    other thread run on, the frame is over before its object is made, and the process crashes. So none is set off.
    """
    collects = sys.version_info < (3, 12) and gc.isenabled()
    if collects:
        gc.disable()
    try:
        top = frame = sys._current_frames().get(thread)
        while frame is not None:  # those below it as well, for whoever looks further
            frame = frame.f_back
        return top
    finally:
        if collects:
            gc.enable()


class System:
    """The real one. Every method is as thin as it can be."""

    def fork(self) -> int:
        """`os.fork`, without Python 3.12's warning about other threads: `forks` says that itself, as an event.

        So the filter is put first whenever others have come before it.
        """
        if _FORK_WARNS:
            import warnings

            filters: list[Any] = warnings.filters  # type: ignore[assignment]
            if not filters or filters[0] is not _QUIET_FORK:
                filters[:] = [_QUIET_FORK, *(known for known in filters if known is not _QUIET_FORK)]
        return os.fork()

    def threads(self) -> int:
        """How many threads this process has, as far as Python knows."""
        return threading.active_count()

    def exit_status(self, pid: int, *, block: bool = False) -> int | None:
        """How the child `pid` has ended: its exit status, or minus the signal's number. None while it runs.

        0 if somebody else has waited for it. With `block` its end is waited for.
        """
        try:
            found, status = os.waitpid(pid, 0 if block else os.WNOHANG)
        except ChildProcessError:
            return 0
        return os.waitstatus_to_exitcode(status) if found == pid else None

    def pidfd(self, pid: int) -> int | None:
        """A descriptor that becomes readable when the child ends; None where there is none to be had."""
        try:
            return os.pidfd_open(pid)
        except (AttributeError, OSError):
            return None

    def descriptor_set(self) -> select.epoll | None:
        """A set of descriptors that is itself watched as one; None where there is no epoll."""
        try:
            return select.epoll()
        except (AttributeError, OSError):
            return None

    def signal_child(self, pid: int, number: int) -> None:
        """Send a signal to a child of ours that has not been waited for."""
        os.kill(pid, number)

    exit_at_once: Callable[[int], NoReturn] = staticmethod(os._exit)
    """End this process at once: no atexit, no waiting for threads, no flushing of what a parent also holds."""

    def pid(self) -> int:
        """This process."""
        return os.getpid()

    def most_descriptors(self) -> int:
        """How many descriptors this process may have, softly; -1 for no limit, or for none to be known."""
        try:
            import resource
        except ImportError:
            return -1
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return -1 if soft == resource.RLIM_INFINITY else soft

    def free_memory(self) -> int:
        """Bytes that can be had without swapping, in this control group; 1 GiB where nobody knows."""
        found = [_number("/proc/meminfo", "MemAvailable:", 1024)]
        most, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
        if most is not None and used is not None:
            found.append(max(0, most - used))
        return min((number for number in found if number is not None), default=1 << 30)

    def monotonic(self) -> float:
        """Seconds on a clock that is never set back."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Do nothing for so long. Only where nothing can be waited for."""
        time.sleep(seconds)

    def on_signal(self, number: int, handler: Callable[[int, Any], object] | int) -> Any:
        """Install a signal handler and return the one before it; main thread only (Python's rule)."""
        import signal  # a sixth of the time that `import portico` takes, for the command line alone

        return signal.signal(number, handler)

    def hold_back(self, number: int, hold: bool) -> None:
        """Have a signal wait from now on, in this thread and the processes it forks, or no longer."""
        import signal

        signal.pthread_sigmask(signal.SIG_BLOCK if hold else signal.SIG_UNBLOCK, (number,))

    def tell_of_signals(self, descriptor: int) -> bool:
        """Have every signal write a byte to `descriptor` (-1: no longer); whether that could be had.

        Only in the main thread, and only if nobody else has asked for it, such as an event loop (Python's rules).
        """
        import signal

        if threading.current_thread() is not threading.main_thread():
            return False
        before = signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
        if descriptor >= 0 and before >= 0:
            signal.set_wakeup_fd(before)
            return False
        return True

    @property
    def environ(self) -> MutableMapping[str, str]:
        """The process's environment."""
        return os.environ


def _number(path: str, name: str = "", unit: int = 1) -> int | None:
    """The number in a file of the kernel's, of the line that begins with `name`; None if there is none."""
    try:
        with open(path) as file:
            return next(int(line.removeprefix(name).split()[0]) * unit for line in file if line.startswith(name))
    except (OSError, ValueError, IndexError, StopIteration):  # another system, or "max"
        return None
