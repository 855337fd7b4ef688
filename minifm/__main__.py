"""`python -m minifm` is `minifm`."""

import sys

from minifm.cli import main

if __name__ == "__main__":
    sys.exit(main())
