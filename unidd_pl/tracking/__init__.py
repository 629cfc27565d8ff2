"""What goes to MLflow and comes back from it: local-first records, one run a stage; `store` alone imports mlflow."""

from unidd_pl.tracking.addresses import without_password
from unidd_pl.tracking.runs import DEFAULT_URI, StageRun, Tracking
from unidd_pl.tracking.store import Store, StoredRun
from unidd_pl.tracking.sync import outbox_of, sync

__all__ = [
    "DEFAULT_URI",
    "StageRun",
    "Store",
    "StoredRun",
    "Tracking",
    "outbox_of",
    "sync",
    "without_password",
]
