"""This is the engine ``containerd``: the real containerd with overlayfs, erofs, stargz-snapshotter or SOCI, inside the
machine.
"""

from harness.engines.containerd.engine import ContainerdEngine

__all__ = ["ContainerdEngine"]
