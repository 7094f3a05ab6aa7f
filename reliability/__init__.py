"""Portico under what goes wrong: `python -m reliability` makes it happen to real servers, and writes what came of it.

Each experiment is a module with a function `experiment`, whose docstring says what is done and what has to come of it;
`registry` lists them. `processes` starts a server (`server`, with the `handlers`) and its clients (`client`), each in a
process of its own; `crowd` lets one process be thousands of clients, `conversations` is what these say; `soak` watches
memory for long; `results` are rows and figures, `page` makes docs/reliability.md of them.
"""
