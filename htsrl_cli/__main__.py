"""Entry point of `python -m htsrl_cli`, which does the same as `htsrl`."""

import sys

from htsrl_cli.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
