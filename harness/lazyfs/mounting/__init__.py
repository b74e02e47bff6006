"""From served bytes to a mounted root file system, and the handover to the kernel."""
