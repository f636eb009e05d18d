"""virtio-balloon: memory that the guest does without, given back to the host (virtio 1.2, 5.5)."""
