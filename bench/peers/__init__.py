"""Portico and its peers, side by side in one run: `python -m bench peers`.

`cases` says what is measured and what is to be reached, `roster` who takes part, `command` is the command line.
`machine` knows the cores, the limits and the versions, `build` compiles the C programs, `encryption` sees to what it
takes for TLS. `runs` takes the samples, round by round, `results` keeps them as JSON, `figures` makes medians and
ratios of them, `page` and `plot` show them.

`serve` is the process that serves: it finds the peer's function in `standard` (socketserver's and Portico's blocking
handlers), `coroutines` (Portico's async ones), `loops` (asyncio, uvloop), `frameworks` (everybody else) or `datagrams`
(UDP, but asyncio's), which `process` tells the port and ends.
"""
