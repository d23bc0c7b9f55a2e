"""The scheduler process: agents that promote, reap, audit, tidy and keep the calendar; no application code here."""
