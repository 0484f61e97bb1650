"""`python -m bitsandbytes`: what is installed, and whether it works."""

import sys

from .diagnostics.main import main

if __name__ == "__main__":
    sys.exit(main())
