#!/bin/sh
# Renew, with hashes: requirements.lock (what a user runs, and what builds it), requirements-dev.lock (what a developer needs on
# top), deploy/requirements.lock (what an image has). What is locked already stays where pyproject.toml allows it; options
# are uv's: with --upgrade everything becomes the newest that is allowed.
set -eu
cd "$(dirname "$0")/.."
options=$*
uv=$(command -v uv || echo .venv/bin/uv)
[ -x "$uv" ] || { .venv/bin/python -P -m pip install --quiet uv; uv=.venv/bin/uv; }
compile() { "$uv" pip compile --quiet --python-version 3.11 --universal --generate-hashes --no-annotate --no-header $options "$@"; }
compile pyproject.toml --group build --output-file requirements.lock
compile pyproject.toml --extra deploy --group dev --constraints requirements.lock --output-file requirements-dev.lock
compile pyproject.toml --constraints requirements.lock --output-file deploy/requirements.lock
