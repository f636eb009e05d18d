"""virtio-blk: the block device (virtio 1.2, 5.2), on a raw image file or block device of the host.

Data goes straight between the file and guest memory. What the host refuses (ENOSPC, EIO) is an error of that request
for the guest and a notice for whoever runs the machine.
"""
