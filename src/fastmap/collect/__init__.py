"""What collectors do with a map they read again and again: `Delta`, groups, histograms.

The counters of a map only grow; what a collector wants is by how much since it last looked, per
key. `Delta` reads a map and says so::

    delta = fastmap.collect.Delta(m)
    while True:
        time.sleep(1)
        batch = delta.read()
        rates = batch.values["packets"] / batch.seconds
"""

from fastmap.collect.delta import Delta, DeltaBatch
from fastmap.collect.groups import column, group_by, top
from fastmap.collect.histograms import Histogram, histogram
from fastmap.collect.pressures import Pressure, pressure

__all__ = ["Delta", "DeltaBatch", "Histogram", "Pressure", "column", "group_by", "histogram",
           "pressure", "top"]
