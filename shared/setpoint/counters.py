"""Names of the fields of the hash `counters`: workers write them with each settle, the exporter reads them."""

from __future__ import annotations

from typing import Final

__all__ = [
    "BUCKETS_US",
    "LE",
    "TAKEOVERS",
    "bucket_fields",
    "evaluation_field",
    "retry_field",
    "sum_field",
]

BUCKETS_US: Final = (
    *(1_000, 3_000, 10_000, 30_000, 100_000, 300_000),
    *(1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000, 300_000_000, 600_000_000),
)
"""Upper bounds of the histograms' buckets; one more is open-ended."""

LE: Final = (*(f"{us / 1e6:g}" for us in BUCKETS_US), "+Inf")
"""The buckets as Prometheus names them, in seconds."""

TAKEOVERS: Final = "takeovers"
"""Leases that ran out and were taken back."""


def evaluation_field(kind: str, outcome: str) -> str:
    """Counts evaluations that ended so."""
    return f"evaluations|{kind}|{outcome}"


def bucket_fields(histogram: str, *labels: str) -> tuple[str, ...]:
    """One field for each bucket of `wait` (by kind) or `duration` (by kind, action, outcome): an observation adds 1 to
    the first that is not below it.

    They are stored apart and not summed up, so that one is enough.
    """
    return tuple(f"{histogram}|{_labels(labels)}|{le}" for le in LE)


def sum_field(histogram: str, *labels: str) -> str:
    """What an observation adds its microseconds to."""
    return f"{histogram}_sum_us|{_labels(labels)}"


def _labels(labels: tuple[str, ...]) -> str:
    return "|".join(label.replace("|", "/") for label in labels)


def retry_field(kind: str, failures: int) -> str:
    """Counts failed evaluations that will be tried again, by how many failed in a row."""
    label = next((str(n) for n in (1, 2, 3, 5, 10) if failures <= n), "more")
    return f"retries|{kind}|{label}"
