"""The state of a service, and each way it may change: values only, no loop, no clock, no I/O.

Ported from Smart Core BOS `pkg/task/service`, with its traps mended: an error is forgotten on success, a retry notes
when it failed, a stop clears what was loading.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, Self, TypeVar

from setpoint.runner.status import Status

__all__ = ["ServiceState"]

E = TypeVar("E")


@dataclass(frozen=True)  # with slots, Python 3.11 cannot call the generic form of it
class ServiceState(Generic[E]):
    """Where a service is. Times are microseconds since 1970 UTC, None for never. `E` is how errors are kept."""

    active: bool = False
    """Whether it was started, and neither stopped nor given up."""
    config: bytes | None = None
    """The newest configuration that could be parsed, as it was given; whether it could be applied is another matter."""
    loading: bool = False
    """Whether the configuration is being applied, or waits to be tried again."""
    err: E | None = None
    """What failed last; None once the configuration is applied."""
    failed_attempts: int = 0
    """Failures in a row of applying this configuration; after a success, how many there were before it."""
    last_inactive_us: int | None = None
    last_active_us: int | None = None
    last_err_us: int | None = None
    last_config_us: int | None = None
    last_loading_start_us: int | None = None
    last_loading_end_us: int | None = None
    """None while it is loading."""
    next_attempt_us: int | None = None
    """When it is applied again after a failure; None unless it waits for that."""

    @property
    def status(self) -> Status:
        """In one word."""
        if self.loading:
            return Status.LOADING
        if self.active:
            return Status.ACTIVE
        return Status.INACTIVE if self.err is None else Status.ERROR

    def started(self, now_us: int) -> Self:
        """Active, without error; what configuration it has begins to load."""
        state = replace(self, active=True, err=None, failed_attempts=0, last_active_us=now_us)
        return state if state.config is None else state._load(now_us)

    def configured(self, config: bytes, now_us: int) -> Self:
        """The configuration is another; an active service begins to load it, whatever it was at."""
        state = replace(self, config=config, last_config_us=now_us)
        return state._load(now_us) if state.active else state

    def _load(self, now_us: int) -> Self:
        return replace(
            self,
            loading=True,
            failed_attempts=0,
            last_loading_start_us=now_us,
            last_loading_end_us=None,
            next_attempt_us=None,
        )

    def refused(self, err: E, now_us: int) -> Self:
        """A configuration could not be parsed. With a working one nothing changes; without, it cannot be active."""
        if self.config is not None:
            return self
        return replace(self._inactive(now_us) if self.active else self, err=err, last_err_us=now_us)

    def attempting(self) -> Self:
        """The wait is over: the configuration is applied again."""
        return replace(self, next_attempt_us=None)

    def applied(self, now_us: int, *, keep_error: bool = False) -> Self:
        """The configuration is applied."""
        return replace(
            self,
            loading=False,
            err=self.err if keep_error else None,
            last_loading_end_us=now_us,
            next_attempt_us=None,
        )

    def retrying(self, err: E, now_us: int, delay_us: int) -> Self:
        """Applying failed, and is tried again after the delay."""
        state = replace(
            self,
            loading=True,
            err=err,
            failed_attempts=self._failures() + 1,
            last_err_us=now_us,
            next_attempt_us=now_us + delay_us,
        )
        return state if self.loading else replace(state, last_loading_start_us=now_us, last_loading_end_us=None)

    def failed(self, err: E, now_us: int) -> Self:
        """Applying failed, and is not tried again: inactive, to be started by somebody."""
        return replace(self._inactive(now_us), err=err, last_err_us=now_us, failed_attempts=self._failures() + 1)

    def _failures(self) -> int:
        # What was applied and failed later, at its work, begins a new row of failures.
        return self.failed_attempts if self.loading else 0

    def stopped(self, now_us: int) -> Self:
        """Inactive. Nothing loads, nothing waits."""
        return self._inactive(now_us)

    def _inactive(self, now_us: int) -> Self:
        return replace(
            self,
            active=False,
            loading=False,
            last_inactive_us=now_us,
            last_loading_end_us=now_us if self.loading else self.last_loading_end_us,
            next_attempt_us=None,
        )
