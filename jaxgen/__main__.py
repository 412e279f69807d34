"""`python -m jaxgen` is the `jaxgen` program."""

import sys

from jaxgen.cli.main import main

if __name__ == '__main__':
  sys.exit(main())
