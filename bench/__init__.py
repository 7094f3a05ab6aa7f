"""Portico measured against the standard library's `socketserver`, in the same run: `python -m bench`.

`measures` says what is measured and what the target is, `openings` the same of TLS and of the PROXY protocol, where the
best of the others is more of a match; `processes` starts the processes that it takes, `server` and
`client` are the scripts that run in them, `rounds` alternates the two, `report` makes the table.

`peers` measures it against everybody else: `python -m bench peers`.
"""
