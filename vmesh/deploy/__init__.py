"""A machine whose services are containers: what they are, in one description, and what engines take for it.

description   which containers, what each needs, in which order they begin
manifests     the description as a compose file, a Swarm stack and Kubernetes manifests
engines       the description carried out: Docker, Docker Swarm
"""
