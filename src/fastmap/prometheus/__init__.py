"""Maps as metrics: a collector for prometheus_client, and what serves it."""

try:
    import prometheus_client as _prometheus_client  # noqa: F401
except ImportError:
    raise ImportError("fastmap.prometheus needs prometheus_client: pip install "
                      "'fastmap-bpf[prometheus]'") from None

from fastmap.prometheus.collector import MapCollector
from fastmap.prometheus.config import declared
from fastmap.prometheus.service import LISTEN, serve

__all__ = ["LISTEN", "MapCollector", "declared", "serve"]
