"""The garbage collector (D6): delete what has expired, merge contributions, free disk space."""
