"""The processes of a machine."""

import vmesh as vmesh  # first: what it sets in the environment is for what services import
