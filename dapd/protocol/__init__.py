"""The draft's rules as pure functions: callers pass in the time and any randomness."""
