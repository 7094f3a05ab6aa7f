"""Prints what programs log over UDP or a Unix socket, and counts it by severity (RFC 3164, RFC 5424).

portico serve examples.syslog:Syslog udp://127.0.0.1:9999 unix-dgram:/tmp/syslog.sock --concurrency none
logger -d -n 127.0.0.1 -P 9999 -p mail.err 'no such mailbox'        logger -u /tmp/syslog.sock hello
"""

import re
import sys
from collections import Counter
from typing import ClassVar

import portico

FACILITIES = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
    "ntp", "audit", "alert", "clock", *(f"local{number}" for number in range(8)),
]  # fmt: skip
SEVERITIES = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"]


def parsed(message: bytes) -> tuple[str, str, str]:
    """Facility, severity and the rest; what has no priority is a user's notice (RFC 3164, 4.3.3)."""
    found = re.match(rb"<(\d{1,3})>(?:1 )?", message)
    if found is None or int(found[1]) >= 8 * len(FACILITIES):
        return "user", "notice", message.decode(errors="replace")
    facility, severity = divmod(int(found[1]), 8)
    return FACILITIES[facility], SEVERITIES[severity], message[found.end() :].decode(errors="replace")


class Syslog(portico.BaseRequestHandler):
    seen: ClassVar[Counter[str]] = Counter()  # one after the other, in the loop's own thread: no lock needed

    def handle(self) -> None:
        facility, severity, text = parsed(self.data)
        self.seen[severity] += 1
        text = "".join(sign if sign.isprintable() else "?" for sign in text.rstrip("\0\n"))  # it goes to a terminal
        print(f"{facility}.{severity} {self.seen[severity]}: {text}", flush=True)


if __name__ == "__main__":
    with portico.UDPServer(("127.0.0.1", 9999), Syslog) as server:
        status = server.run()  # until Ctrl-C
    print(dict(Syslog.seen))
    sys.exit(status)
