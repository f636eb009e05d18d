#!/bin/sh
# Fill build/image, of which deploy/Dockerfile makes an image: vmesh, its packages (locked), and the default guest. The packages stay while
# the lock does.
set -eu
cd "$(dirname "$0")/.."
to=build/image
python=.venv/bin/python
lock=$(sha256sum deploy/requirements.lock | cut -c 1-64)
install() { "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile "$@"; }
if [ "$(cat $to/lock 2>/dev/null)" != "$lock" ]; then
  rm -rf $to
  mkdir -p $to
  install --require-hashes --target $to/packages -r deploy/requirements.lock
  rm -rf $to/packages/bin
  find $to/packages -type d -name tests -prune -exec rm -rf {} +
  echo "$lock" >$to/lock
fi
rm -rf $to/site $to/guest build/lib
cp -al $to/packages $to/site
install --no-build-isolation --target $to/own .
rm -rf $to/own/bin
mv $to/own/* $to/site/
rm -r $to/own
mkdir -p $to/guest
"$python" - $to/guest <<'END'
import shutil, sys
from vmesh.guest import cache

# Without a Debian guest the image has none, and boots the small one.
if cache.find():
    found = cache.cache_directory()
    manifest = cache.read_manifest(found)
    kept = ("manifest.json", manifest.directory)
    shutil.copytree(found, f"{sys.argv[1]}/{found.name}", ignore=lambda folder, names: set(names) - set(kept) if folder == str(found) else ())
END
