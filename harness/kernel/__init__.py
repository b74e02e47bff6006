"""This package asks the kernel for what it does for us: system calls, loop devices, OverlayFS mounts."""
