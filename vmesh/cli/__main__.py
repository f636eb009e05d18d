"""`python -m vmesh.cli` is `vmesh`."""

import sys

from vmesh.cli.main import main

sys.exit(main())
