"""Small loops that watch the clock, refresh tasks and keys, and keep lag and history."""
