"""Checks whether Dray can run on this machine, and how well, without starting anything."""

from cluster.doctor.examination import examine
from cluster.doctor.finding import Finding, Level

__all__ = ["Finding", "Level", "examine"]
