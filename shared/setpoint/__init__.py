"""Goal states, durable tasks, workflows and processes for fleets, on Redis and RQ."""
