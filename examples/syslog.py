"""Receives what programs log over UDP or a Unix socket, prints it, and counts it by severity (RFC 3164, RFC 5424).

portico serve examples.syslog:Syslog udp://127.0.0.1:9999 unix-dgram:/tmp/syslog.sock
logger -d -n 127.0.0.1 -P 9999 -p mail.err "no such mailbox"        or: logger -u /tmp/syslog.sock hello
"""

import re
from collections import Counter
from typing import ClassVar

import portico

FACILITIES = "kern user mail daemon auth syslog lpr news uucp cron authpriv ftp ntp audit alert clock".split()
FACILITIES += [f"local{number}" for number in range(8)]
SEVERITIES = "emerg alert crit err warning notice info debug".split()


def parsed(message: bytes) -> tuple[str, str, str]:
    """Facility, severity and the rest. What does not begin as it should is taken for a user's notice (RFC 3164, 4.3.3)."""
    found = re.match(rb"<(\d{1,3})>(?:1 )?", message)
    priority = int(found[1]) if found else 191 + 1
    if found is None or priority >= 8 * len(FACILITIES):
        return "user", "notice", message.decode(errors="replace")
    text = message[found.end() :].decode(errors="replace")
    return FACILITIES[priority // 8], SEVERITIES[priority % 8], text
