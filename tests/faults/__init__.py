"""One test or more for every fault of `socketserver` that Portico mends; the rows are those of the list of faults.

All run on the standard library's module, too (`--against socketserver`), where those without the mark `new_feature` or
`regression` fail: that is what they are for. So every wait in here is bounded, and no thread is left that must end.
"""
