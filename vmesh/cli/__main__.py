"""`python -P -m vmesh.cli` is `vmesh`."""

from vmesh.cli.main import entry

entry()
