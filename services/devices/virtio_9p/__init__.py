"""virtio-9p: a folder of the host for the guest, as a file server for the protocol 9P2000.L (virtio 1.2, 5.10)."""
