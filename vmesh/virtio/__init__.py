"""virtio 1.2 over MMIO (version 2), for devices written with the SDK.

A device is a `device.VirtioDevice`, which a driver reaches by a transport (`mmio.Mmio`); its virtqueues are
`queue.Queue`s, split or packed as the driver wishes. Source:
Virtual I/O Device (VIRTIO) Version 1.2, OASIS. The register and descriptor names are the specification's.
"""
