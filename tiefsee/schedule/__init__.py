"""Who computes what next: requests, blocks and streams, prefix cache, batches. No torch, no clock."""

from tiefsee.schedule.batch import (
    Accepted,
    Batch,
    BeforeStep,
    CopyBlock,
    CopyRing,
    Entry,
    RestoreSnapshot,
    SaveSnapshot,
)
from tiefsee.schedule.config import SchedulerConfig, Statistics
from tiefsee.schedule.request import Request, State
from tiefsee.schedule.scheduler import Scheduler

__all__ = [
    "Accepted",
    "Batch",
    "BeforeStep",
    "CopyBlock",
    "CopyRing",
    "Entry",
    "Request",
    "RestoreSnapshot",
    "SaveSnapshot",
    "Scheduler",
    "SchedulerConfig",
    "State",
    "Statistics",
]
