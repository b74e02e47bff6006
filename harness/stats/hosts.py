"""This module makes one ratio of several hosts': hosts are the top level of replication, blocks count inside each.

The model is a random-effects meta-analysis of the hosts' mean log ratios: host j shows theta + u_j + e_j, where u_j
(how hosts differ) has variance tau^2 and e_j is known from that host's blocks. tau^2 is DerSimonian and Laird's
(1986). The interval is Hartung and Knapp's (2001) with Student's t at hosts-1 degrees of freedom, never narrower than
the one from the blocks alone (Röver, Knapp and Friede 2015). It speaks of hosts like these. With one host or two no
spread between hosts can be estimated: the ratio then is their precision-weighted mean, its interval comes from the
blocks, and it speaks of these hosts only. ``model`` says which of the two it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import stats

from harness.stats.paired import PairedRatio, from_log

if TYPE_CHECKING:
    from collections.abc import Mapping

Model = Literal["random effects over hosts", "these hosts only"]
#: With fewer hosts the interval speaks of these hosts only.
MIN_HOSTS = 3


@dataclass(frozen=True, slots=True)
class HostsRatio:
    """Holds the overall ratio; ``low`` and ``high`` are None where no host has an interval.

    ``tau_log`` is the standard deviation between hosts, ``inconsistency`` the part of the variation that is between
    hosts rather than noise inside them (I squared), ``heterogeneity_p`` Cochran's Q test that the hosts agree.
    """

    ratio: float
    low: float | None
    high: float | None
    p_value: float | None
    hosts: int
    blocks: int
    model: Model
    tau_log: float = 0.0
    inconsistency: float = 0.0
    heterogeneity_p: float | None = None
    se_log: float | None = None
    degrees: float = 0.0

    def as_ratio(self) -> PairedRatio:
        """Returns the overall ratio in the form of one host's, for verdicts."""
        return from_log(math.log(self.ratio), self.se_log, self.degrees, self.blocks)


def across_hosts(ratios: Mapping[str, PairedRatio], *, alpha: float = 0.05) -> HostsRatio:
    """Returns the overall ratio of hosts' own ratios; hosts without an interval (fewer than three
    blocks) are left out.
    """
    usable = [r for r in ratios.values() if r.se_log is not None]
    if not usable:
        if not ratios:
            raise ValueError("no host")
        logs = [math.log(r.ratio) for r in ratios.values()]
        blocks = sum(r.blocks for r in ratios.values())
        return HostsRatio(math.exp(float(np.mean(logs))), None, None, None, len(logs), blocks, "these hosts only")
    y = np.array([math.log(r.ratio) for r in usable])
    # A host whose blocks all agree to the last digit would outweigh every other one without end.
    v = np.array([max(r.se_log or 0.0, 1e-9) ** 2 for r in usable])
    k, blocks = len(usable), sum(r.blocks for r in usable)
    w = 1 / v
    fixed = float((w * y).sum() / w.sum())
    q = float((w * (y - fixed) ** 2).sum())
    heterogeneity_p = float(stats.chi2.sf(q, k - 1)) if k > 1 else None
    inconsistency = max(0.0, (q - (k - 1)) / q) if q > 0 else 0.0
    scale = float(w.sum() - (w**2).sum() / w.sum())
    tau2 = max(0.0, (q - (k - 1)) / scale) if k > 1 and scale > 0 else 0.0
    if k < MIN_HOSTS:
        center, se = fixed, math.sqrt(1 / float(w.sum()))
        degrees = float(sum(r.degrees for r in usable))
        model: Model = "these hosts only"
    else:
        w = 1 / (v + tau2)
        center = float((w * y).sum() / w.sum())
        factor = float((w * (y - center) ** 2).sum()) / (k - 1)
        se = math.sqrt(max(1.0, factor) / float(w.sum()))
        degrees = float(k - 1)
        model = "random effects over hosts"
    half = float(stats.t.ppf(1 - alpha / 2, degrees)) * se
    p = float(2 * stats.t.sf(abs(center) / se, degrees))
    low, high = math.exp(center - half), math.exp(center + half)
    tau = math.sqrt(tau2)
    return HostsRatio(
        math.exp(center), low, high, p, k, blocks, model, tau, inconsistency, heterogeneity_p, se, degrees
    )
