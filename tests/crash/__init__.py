"""What survives when processes are killed and servers lose things."""
