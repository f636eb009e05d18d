"""Write deploy/stack.yml and deploy/kubernetes/machine.yaml anew, from vmesh/deploy/description.py. A test compares."""

from __future__ import annotations

from pathlib import Path

import yaml

from vmesh.deploy import manifests
from vmesh.deploy.description import describe

ROOT = Path(__file__).resolve().parent.parent
GATEWAY = "tcp:0.0.0.0:7700,tls-creds=/run/secrets"
SECRETS = {file: f"vmesh-{file.removesuffix('.pem')}" for file in ("ca-cert.pem", "server-cert.pem", "server-key.pem")}
_HEADS = {
    "deploy/stack.yml": """\
# A machine in a Swarm: docker stack deploy --compose-file deploy/stack.yml NAME. Made by tools/manifests.py.
# docs/deploy.md says which label a node needs, and which secrets there have to be.
""",
    "deploy/kubernetes/machine.yaml": """\
# A machine in Kubernetes, one pod: kubectl apply -k deploy/kubernetes. Made by tools/manifests.py.
""",
}


class _Plain(yaml.SafeDumper):
    """Without names for what occurs twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def written() -> dict[str, str]:
    """The files' texts by path."""
    made = {
        "deploy/stack.yml": manifests.stack(describe(("-gateway", GATEWAY)), SECRETS),
        "deploy/kubernetes/machine.yaml": manifests.kubernetes(describe()),
    }
    return {
        path: _HEADS[path] + yaml.dump(manifest, Dumper=_Plain, sort_keys=False, width=120)
        for path, manifest in made.items()
    }


if __name__ == "__main__":
    for path, text in written().items():
        (ROOT / path).write_text(text)
