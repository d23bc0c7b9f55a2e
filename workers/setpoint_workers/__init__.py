"""The worker process: a parent that owns Redis and leases, and a child that runs application code."""
