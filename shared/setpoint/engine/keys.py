"""Every key of a fleet, each a function or a constant of one `Keys`. No other file spells a key.

All carry the hash tag `{<namespace>:0}`, so a fleet lives in one Cluster slot; 0 is the shard.
"""

from __future__ import annotations

import re

from setpoint.errors import ConfigurationError

_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


class Keys:
    """The keys of one fleet."""

    __slots__ = (
        "counters",
        "events",
        "fence",
        "holder",
        "kinds",
        "meta",
        "namespace",
        "paused",
        "prefix",
        "trouble",
        "waiters",
        "wake",
        "wish",
        "worker",
        "workers",
    )

    def __init__(self, namespace: str) -> None:
        if not _NAMESPACE.fullmatch(namespace):
            raise ConfigurationError(
                f"{namespace!r} cannot be a namespace: letters, digits, '_', '.' and '-', 1 to 64 of them"
            )
        self.namespace = namespace
        self.prefix = prefix = f"{{{namespace}:0}}:"
        self.meta = prefix + "meta"  # hash: layout, shards, epoch, skew (tests only), topology, agents' ticks
        self.holder = prefix + "holder"  # hash: leased ref -> "fence phase due since worker"
        self.wish = prefix + "wish"  # hash: leased or paused ref -> earliest due time asked for meanwhile
        self.trouble = prefix + "trouble"  # hash: ref -> "failures crashes first_crash delay waits suspect reason|blob"
        self.wake = prefix + "wake"  # list, at most 1: something for the promoter
        self.fence = prefix + "fence"  # string: high-water mark of all fences
        self.events = prefix + "events"  # stream, capped: pairs refs (a line each) -> event
        self.counters = prefix + "counters"  # hash: counters and histogram buckets
        self.waiters = prefix + "waiters"  # hash: ref -> until when somebody waits for it
        self.paused = prefix + "paused"  # hash: fleet, lane:<lane>, kind:<kind>, ref:<ref> -> "until text"
        self.kinds = prefix + "kinds"  # hash: kind -> "born worker|policy"
        self.workers = prefix + "workers"  # zset: worker -> when it counts as dead
        self.worker = prefix + "worker"  # hash: worker -> what it knows and does

    def due(self, kind: str) -> str:
        """Zset: ref -> due time, of refs that wait."""
        return f"{self.prefix}due:{kind}"

    def lease(self, kind: str) -> str:
        """Zset: ref -> lease expiry, of refs being evaluated."""
        return f"{self.prefix}lease:{kind}"

    def idle(self, kind: str) -> str:
        """Zset: ref -> when the Janitor looks again, of refs known and at rest."""
        return f"{self.prefix}idle:{kind}"

    def parked(self, kind: str) -> str:
        """Zset: ref -> since when, of refs that wait for a person or an instant."""
        return f"{self.prefix}parked:{kind}"

    def record(self, ref: str) -> str:
        """Hash: state, goal, revision, data, labels and the last transitions of one managed entity."""
        return f"{self.prefix}record:{ref}"

    def hints(self, lane: str) -> str:
        """Zset: hint id -> since when, of hints rung and not yet answered."""
        return f"{self.prefix}hints:{lane}"

    def limit(self, kind: str) -> str:
        """String: theoretical arrival time of a kind's rate limit."""
        return f"{self.prefix}limit:{kind}"

    def op(self, caller: str) -> str:
        """String: a caller's last operation number and its reply, for 60 s."""
        return f"{self.prefix}op:{caller}"

    def at(self, ref: str) -> str:
        """Pub/sub channel: something settled at this ref."""
        return f"{self.prefix}at:{ref}"
