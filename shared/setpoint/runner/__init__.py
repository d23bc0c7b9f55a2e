"""The in-process task runner: retry, groups, polls, lifecycles and services for asyncio programs.

It needs no Redis and no worker. Plain functions are accepted wherever coroutine functions are, and run in a thread.
Everything public is importable from here; docs/runner.md is the tutorial and reference.
"""

from __future__ import annotations

from setpoint.backoff import Backoff
from setpoint.runner.delays import ServiceRetry
from setpoint.runner.errors import (
    AlreadyStarted,
    AlreadyStopped,
    AttemptTimedOut,
    BadConfig,
    BadId,
    CannotBeConfigured,
    CannotBeStopped,
    Immutable,
    NotStarted,
    ServiceExists,
    ServiceNotFound,
    StrayCancellation,
    TagExists,
    WatchLagged,
)
from setpoint.runner.feed import Watch
from setpoint.runner.group import Group, GroupTask
from setpoint.runner.intermittent import Attachment, Intermittent, idle_keep_alive
from setpoint.runner.lifecycle import Configurable, Lifecycle, Startable, Stoppable, configure, stop
from setpoint.runner.next import AbortRetry, Next, TaskFailed
from setpoint.runner.polling import PollState, poll
from setpoint.runner.retry import RETRY_UNLIMITED, Runner, RunOptions, Step, TaskState, run
from setpoint.runner.scope import Scope
from setpoint.runner.service import Service
from setpoint.runner.service_map import (
    ChangeType,
    ServiceChange,
    ServiceMap,
    ServiceRecord,
    id_is_kind,
    id_is_required,
    id_is_uuid,
)
from setpoint.runner.service_state import ServiceState
from setpoint.runner.status import Status, SystemCheck, update_system_check

__all__ = [
    "RETRY_UNLIMITED",
    "AbortRetry",
    "AlreadyStarted",
    "AlreadyStopped",
    "Attachment",
    "AttemptTimedOut",
    "Backoff",
    "BadConfig",
    "BadId",
    "CannotBeConfigured",
    "CannotBeStopped",
    "ChangeType",
    "Configurable",
    "Group",
    "GroupTask",
    "Immutable",
    "Intermittent",
    "Lifecycle",
    "Next",
    "NotStarted",
    "PollState",
    "RunOptions",
    "Runner",
    "Scope",
    "Service",
    "ServiceChange",
    "ServiceExists",
    "ServiceMap",
    "ServiceNotFound",
    "ServiceRecord",
    "ServiceRetry",
    "ServiceState",
    "Startable",
    "Status",
    "Step",
    "Stoppable",
    "StrayCancellation",
    "SystemCheck",
    "TagExists",
    "TaskFailed",
    "TaskState",
    "Watch",
    "WatchLagged",
    "configure",
    "id_is_kind",
    "id_is_required",
    "id_is_uuid",
    "idle_keep_alive",
    "poll",
    "run",
    "stop",
    "update_system_check",
]
