"""``python -m distiller_ng.cli`` (layer 5)."""

import sys

from distiller_ng.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
