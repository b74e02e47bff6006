"""Engine containerd: its parts, and the real programs."""
