"""virtio-rng: the entropy device (virtio 1.2, 5.4). Every request is filled with the host's random bytes."""
