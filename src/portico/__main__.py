"""`python -m portico` is the command `portico`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
