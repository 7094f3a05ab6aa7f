"""A name server for one small zone. Needs a parser of DNS messages: pip install dnslib.

portico serve examples.dns:Names udp://127.0.0.1:9999 tcp://127.0.0.1:9999
dig @127.0.0.1 -p 9999 www.example.test AAAA
"""

import sys

import portico

try:
    from dnslib import EDNS0, QTYPE, RCODE, RR, DNSError, DNSRecord  # type: ignore[import-untyped]
except ImportError:
    sys.exit("examples.dns needs dnslib: pip install dnslib")

ZONE = RR.fromZone(f"""
example.test.       300 IN SOA   ns.example.test. admin.example.test. 1 3600 600 86400 300
ns.example.test.    300 IN A     192.0.2.53
www.example.test.   300 IN A     192.0.2.80
www.example.test.   300 IN AAAA  2001:db8::80
www.example.test.   300 IN TXT   "hello"
long.example.test.  300 IN TXT   {'"of two kilobytes"' * 120}
""")


def answer(message: bytes, room: int) -> bytes:
    """What to say to a question; nothing to what is none. With `room` for so many bytes, or what the client has."""
    try:
        question = DNSRecord.parse(message)
    except DNSError:
        return b""
    if question.header.qr or not question.questions:  # an answer: two servers would talk for ever
        return b""
    name, kind = question.q.qname, question.q.qtype
    reply = question.reply(ra=0)
    known = [record for record in ZONE if record.rname == name]
    reply.add_answer(*(record for record in known if record.rtype == kind))
    if not reply.rr:
        reply.header.rcode = RCODE.NOERROR if known else RCODE.NXDOMAIN
        reply.add_auth(ZONE[0])
    for option in question.ar:
        if option.rtype == QTYPE.OPT:  # EDNS: the client says how long a datagram may be
            reply.add_ar(EDNS0(udp_len=1232))
            room = max(room, min(option.edns_len, 1232))
    if len(reply.pack()) > room:
        reply.rr, reply.auth, reply.header.tc = [], [], 1  # ask again over TCP
    return bytes(reply.pack())


class Names(portico.BaseRequestHandler):
    def handle(self) -> None:
        if isinstance(self.request, tuple):
            if said := answer(self.data, 512):
                self.request[1].sendto(said, self.client_address)
            return
        with self.request.makefile("rb") as messages:  # over TCP each message comes after its length
            while said := answer(messages.read(int.from_bytes(messages.read(2))), 65535):
                self.request.sendall(len(said).to_bytes(2) + said)
