"""Small loops that keep the daemon's view of the world true: clock, tasks, keys, lag, history."""
