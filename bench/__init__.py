"""What vmesh claims, measured beside the peers in the same run: `python -P -m bench --help`."""

import vmesh as vmesh  # first: what it sets in the environment is for what benchmarks import
