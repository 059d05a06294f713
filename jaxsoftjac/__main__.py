"""`python -m jaxsoftjac`: the command line of `jaxsoftjac.cli`."""

import sys

from jaxsoftjac.cli import main

if __name__ == "__main__":
    sys.exit(main())
