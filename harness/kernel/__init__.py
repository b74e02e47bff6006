"""What the kernel does for us: system calls, loop devices, OverlayFS mounts."""
