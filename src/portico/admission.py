"""Who may enter: networks, the number of connections, their rate, and each of these for one client.

Pure rules on values and times: no socket object, no clock, no log and no policy. `_acceptor` decides what follows
from a refusal, `logs` tells of it, `settings` has the defaults and checks single values. Whatever is asked here is
asked once a connection, so hardly anything takes longer the more connections, clients or networks there are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from socket import AF_INET, AF_INET6, inet_pton
from threading import RLock

from .errors import SettingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable
    from typing import Any, Final

__all__ = [
    "UNANNOUNCED",
    "Admission",
    "ClientRates",
    "Networks",
    "Rate",
    "Trusted",
    "check",
    "client_key",
    "user_ids",
]

# Every address is a point on one line of numbers: IPv4 from 0, IPv6 from here. What is mapped (::ffff:0:0/96) is IPv4.
_IPV6: Final = 1 << 128
_NO_ADDRESS: Final = -1


def _number(host: Any) -> int:
    try:
        if ":" not in host:
            return int.from_bytes(inet_pton(AF_INET, host), "big")
        number = int.from_bytes(inet_pton(AF_INET6, host.partition("%")[0]), "big")
    except (OSError, TypeError, ValueError):
        return _NO_ADDRESS
    return number & 0xFFFFFFFF if number >> 32 == 0xFFFF else number | _IPV6


def _range(text: object) -> tuple[int, int]:
    """The first address of a network, and the first one past it; `ValueError` says what is wrong."""
    if not isinstance(text, str):
        raise ValueError("is no text")
    host, slash, digits = text.strip().partition("/")
    number = _number(host)
    if number == _NO_ADDRESS or "%" in host:
        raise ValueError("is no network")
    width = 128 if ":" in host else 32
    if slash and not (digits.isascii() and digits.isdigit() and len(digits) <= 3 and int(digits) <= width):
        raise ValueError(f"has a prefix that is no number from 0 to {width}")
    length = int(digits) if slash else width
    size = 1 << (width - length)
    if number % size or (number < _IPV6 and size > _IPV6 >> 96):
        raise ValueError(f"has bits set after its prefix of {length}")
    return number, number + size


class Networks:
    """An immutable set of IP networks: `"192.0.2.1" in Networks.parse("192.0.2.0/24, 2001:db8::/32")`."""

    # The ends of sorted, disjoint ranges, in turn: a number is inside where it has an odd number of them before it.
    # A look-up among 1,000 networks with the parsing of the text was measured at 0.5 us for IPv4, 0.8 us for IPv6.
    __slots__ = ("_ends",)

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        ends: list[int] = []
        for first, past in sorted(ranges):
            if ends and first <= ends[-1]:
                ends[-1] = max(ends[-1], past)
            else:
                ends += first, past
        self._ends = tuple(ends)

    @classmethod
    def parse(cls, value: object, setting: str = "networks") -> Networks:
        """Read a list or tuple of texts, or one text with commas. `SettingError` names the wrong entry."""
        try:
            return cls.of(value)
        except ValueError as wrong:
            allowed = 'networks such as "10.0.0.0/8", "192.0.2.1" or "2001:db8::/32": a list, or a text with commas'
            raise SettingError(f"{setting}: {wrong}; it must be {allowed}") from None

    @classmethod
    def of(cls, value: object) -> Networks:
        """The same, with a `ValueError` that says no more than what is wrong."""
        entries = value.split(",") if isinstance(value, str) else value
        if not entries or not isinstance(entries, (list, tuple)):
            raise ValueError(f"{value!r} is no list of networks, and no text with commas")
        ranges = []
        for entry in entries:
            try:
                ranges.append(_range(entry))
            except ValueError as wrong:
                raise ValueError(f"{entry!r} {wrong}") from None
        return cls(ranges)

    def __contains__(self, host: object) -> bool:
        """Whether a host, as in `client_address[0]`, is in one of them. A scope (%eth0) is ignored."""
        return bisect_right(self._ends, _number(host)) % 2 == 1

    def covers(self, other: Networks) -> bool:
        """Whether no address is in `other` that is not in these."""
        mine, theirs = self._ends, other._ends
        return all(
            (after := bisect_right(mine, first)) % 2 == 1 and mine[after] >= past
            for first, past in zip(theirs[::2], theirs[1::2], strict=True)
        )


def client_key(host: Hashable, prefix4: int, prefix6: int) -> Hashable:
    """What counts as one client: a network of that many bits, since who has one IPv6 address has 2**64.

    A text for a whole IPv4 address, else one number, which begins with a 1 to keep its length and is negative for
    IPv4. What is no IP address stays as it is.
    """
    if not isinstance(host, str) or (prefix4 == 32 and ":" not in host):
        return host
    number = _number(host)
    if number == _NO_ADDRESS:
        return host
    if number >= _IPV6:
        return number >> (128 - prefix6)
    if prefix4 == 32:
        return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return -((1 << 32 | number) >> (32 - prefix4))


class Trusted:
    """Who is believed: networks, and with the word "unix" whoever connects over a Unix socket."""

    __slots__ = ("_networks", "_unix")

    def __init__(self, value: object) -> None:
        entries = value.split(",") if isinstance(value, str) else value
        if not isinstance(entries, (list, tuple)):
            entries = ()
        words = [entry.strip() if isinstance(entry, str) else entry for entry in entries]
        self._unix = "unix" in words
        rest = [word for word in words if word != "unix"]
        self._networks = Networks.parse(rest, "proxy_trusted") if rest or not self._unix else Networks(())

    def __contains__(self, client_address: object) -> bool:
        """Whether a client is one of them, by the address that it has connected from."""
        if isinstance(client_address, tuple):
            return bool(client_address) and client_address[0] in self._networks
        return self._unix


def user_ids(value: object, *, groups: bool = False) -> frozenset[int]:
    """Users' or groups' numbers, which may be given as names; `SettingError` for a wrong entry."""
    entries = value.split(",") if isinstance(value, str) else value
    if not entries or not isinstance(entries, (list, tuple, set, frozenset)):
        raise SettingError("give at least one")
    return frozenset(_user_id(entry, groups) for entry in entries)


def _user_id(entry: object, groups: bool) -> int:
    text = entry.strip() if isinstance(entry, str) else entry
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    if not isinstance(text, str) or not text:
        raise SettingError(f"{entry!r} is no number or name")
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        if groups:
            from grp import getgrnam

            return getgrnam(text).gr_gid
        from pwd import getpwnam

        return getpwnam(text).pw_uid
    except (ImportError, KeyError):
        raise SettingError(f"there is no {'group' if groups else 'user'} {text!r}") from None


class Rate:
    """So many a second, `burst` at once: a token bucket whose whole state is when it is full again (GCRA's "tat")."""

    __slots__ = ("_ahead", "_interval")

    FULL: Final = float("-inf")  # the state of a bucket from which nothing was ever taken

    def __init__(self, per_second: float, burst: float | None = None) -> None:
        """A `burst` of None is one second's worth, and at least 1."""
        self._interval = 1 / per_second
        # Rounding must not refuse the last one of a burst: there is a thousandth of one more.
        self._ahead = ((max(1, per_second) if burst is None else burst) - 0.999) * self._interval

    def wait(self, tat: float, now: float) -> float:
        """Seconds until another one may enter; 0.0 for now."""
        return max(0.0, tat - self._ahead - now)

    def next(self, tat: float, now: float) -> float:
        """The state after one has entered."""
        return max(tat, now) + self._interval


class ClientRates:
    """One rate for each client, of whom at most `limit` are remembered."""

    # Not a dict: to find the first key of one from whose front keys are always taken is a walk over all the gaps.
    # An entry takes 209 bytes with its key, 65,536 take 13.7 MB, and 18.6 MB while the table is made anew (a million
    # addresses, tracemalloc).
    __slots__ = ("_limit", "_rate", "_tats")

    def __init__(self, rate: Rate, limit: int) -> None:
        self._rate = rate
        self._limit = limit
        self._tats: OrderedDict[Hashable, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tats)

    def wait(self, key: Hashable, now: float) -> float:
        """Seconds until this client may enter once more; 0.0 for now."""
        return self._rate.wait(self._tats.get(key, Rate.FULL), now)

    def enter(self, key: Hashable, now: float) -> None:
        """Take a token from this client's bucket."""
        self._tats[key] = self._rate.next(self._tats.get(key, Rate.FULL), now)
        self._tats.move_to_end(key)
        if len(self._tats) > self._limit:
            self._forget(now)

    def _forget(self, now: float) -> None:
        """Make room: of the four that were touched longest ago those whose buckets are full, else the first."""
        oldest = [key for key, _ in zip(self._tats, range(4), strict=False)]
        for key in [key for key in oldest if self._tats[key] <= now] or oldest[:1]:
            del self._tats[key]


UNANNOUNCED: Final = object()
"""In a client's place, until it is announced: only what counts for all clients together counts."""
_RULES: Final = ("allow", "deny", "allow_uids", "allow_gids", "max_connections", "max_connections_per_client")
_BURSTS: Final = {"connection_rate": "connection_burst", "connection_rate_per_client": "connection_burst_per_client"}


class Admission:
    """The rules of one server, and what it has to count for them.

    A host is the text in `client_address[0]`, or any other hashable for a client without an IP address, to whom
    networks do not apply. A connection counts from `entered` to `left`, which any thread may call; all else is the
    loop's. Times are in seconds, by one clock that does not go back.
    """

    def __init__(self, server: Any) -> None:
        self._allow, self._deny = _networks(server, "allow"), _networks(server, "deny")
        self._uids, self._gids = _ids(server, "allow_uids"), _ids(server, "allow_gids")
        self._most: int | None = getattr(server, "max_connections", None)
        self._most_each: int | None = getattr(server, "max_connections_per_client", None)
        self._rate, each = (_rate(server, name) for name in _BURSTS)
        self._clients = ClientRates(each, server.max_tracked_clients) if each is not None else None
        self._prefixes: tuple[int, int] = server.client_prefix_ipv4, server.client_prefix_ipv6
        self._tat = Rate.FULL
        self._counts: dict[Hashable, int] = {}
        self._lock = RLock()  # re-entrant: a signal handler or a finalizer may end a connection in the middle of it

    @classmethod
    def of(cls, server: Any, live: Iterable[Hashable] = ()) -> Admission | None:
        """The rules that a server's attributes set; None if they set none.

        `live` are the hosts of the connections that are open already, if the rules change meanwhile; none of them may
        leave during the call. Buckets start full.
        """
        if all(getattr(server, name, None) is None for name in (*_RULES, *_BURSTS)):
            return None
        admission = cls(server)
        for host in live:
            admission._count(admission._key(host), 1)
        return admission

    def wait(self, active: int, now: float) -> float | None:
        """None to take one from the backlog now, else the seconds until then; inf: when one has left."""
        if self._most is not None and active >= self._most:
            return float("inf")
        return None if self._rate is None else self._rate.wait(self._tat, now) or None

    def refusal(self, host: Hashable, active: int, now: float) -> str | None:
        """Which setting keeps a new connection out, besides `active` others; None if none does. Changes nothing."""
        if self._most is not None and active >= self._most:
            return self._refusal_of_network(host) or "max_connections"
        reason = self.refusal_of_client(host, now)
        if (
            reason in (None, "connection_rate_per_client")
            and self._rate is not None
            and self._rate.wait(self._tat, now)
        ):
            return "connection_rate"
        return reason

    def refusal_of_client(self, host: Hashable, now: float) -> str | None:
        """The same for one whom a connection that has entered is announced to come from."""
        reason = self._refusal_of_network(host)
        if reason is None and self._most_each is not None and self._counts.get(self._key(host), 0) >= self._most_each:
            reason = "max_connections_per_client"
        if reason is None and self._clients is not None and self._clients.wait(self._key(host), now):
            reason = "connection_rate_per_client"
        return reason

    def _refusal_of_network(self, host: Hashable) -> str | None:
        if isinstance(host, str):
            if self._allow is not None and host not in self._allow:
                return "allow"
            if self._deny is not None and host in self._deny:
                return "deny"
        return None

    def refusal_of_user(self, uid: int, groups: Iterable[int]) -> str | None:
        """The same for whoever is behind a Unix socket, which has no network; groups are all that he is in."""
        if self._uids is None and self._gids is None:
            return None
        if uid in (self._uids or ()) or not (self._gids or frozenset()).isdisjoint(groups):
            return None
        return "allow_uids" if self._gids is None else "allow_gids"

    @property
    def asks_for_users(self) -> bool:
        return self._uids is not None or self._gids is not None

    def entered(self, host: Hashable, now: float) -> None:
        """Count one in. Who enters in spite of a rate (in a dry run) takes no token: refused, it would not have."""
        if self._rate is not None and not self._rate.wait(self._tat, now):
            self._tat = self._rate.next(self._tat, now)
        if host is not UNANNOUNCED:
            self.announced(host, now)

    def announced(self, host: Hashable, now: float) -> None:
        """One that has entered is this client's."""
        key = self._key(host)
        if self._clients is not None and not self._clients.wait(key, now):
            self._clients.enter(key, now)
        self._count(key, 1)

    def left(self, host: Hashable) -> None:
        """Count one out, from any thread."""
        self._count(self._key(host), -1)

    def _key(self, host: Hashable) -> Hashable:
        return client_key(host, *self._prefixes)

    def _count(self, key: Hashable, change: int) -> None:
        if self._most_each is None:
            return
        with self._lock:
            count = self._counts.get(key, 0) + change
            if count > 0:
                self._counts[key] = count
            else:
                self._counts.pop(key, None)


def _networks(server: Any, name: str) -> Networks | None:
    value = getattr(server, name, None)
    return None if value is None or value in ("", [], ()) else Networks.parse(value, name)


def _ids(server: Any, name: str) -> frozenset[int] | None:
    value = getattr(server, name, None)
    return None if value is None else user_ids(value, groups=name == "allow_gids")


def _rate(server: Any, name: str) -> Rate | None:
    per_second = getattr(server, name, None)
    return None if per_second is None else Rate(per_second, getattr(server, _BURSTS[name], None))


def check(server: Any) -> None:
    """Raise `SettingError` for settings that contradict each other; single values are checked elsewhere."""
    each = ((f"{name}_per_client", name) for name in ("max_connections", "connection_rate"))
    for part, whole in (*each, ("connections_alarm", "max_connections")):
        few, many = getattr(server, part, None), getattr(server, whole, None)
        if few is not None and many is not None and few > many:
            raise SettingError(f"{part} ({few!r}) must not be above {whole} ({many!r})")
    for rate, burst in _BURSTS.items():
        if getattr(server, burst, None) is not None and getattr(server, rate, None) is None:
            raise SettingError(f"{burst} ({getattr(server, burst, None)!r}) needs a {rate}, which is None")
    allow, deny = _networks(server, "allow"), _networks(server, "deny")
    if allow is not None and deny is not None and deny.covers(allow):
        raise SettingError(f"deny ({server.deny!r}) covers all of allow ({server.allow!r}): nobody could enter")
