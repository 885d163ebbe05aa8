"""`python -m htsrl_cli` is `htsrl`."""

import sys

from htsrl_cli.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
