"""virtio-console: a serial console without registers for each byte (virtio 1.2, 5.3), with one port."""
