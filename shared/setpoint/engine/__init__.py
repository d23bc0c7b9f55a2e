"""The only door to Redis: keys, scripts, records and connections."""
