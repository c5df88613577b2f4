"""The draft's rules without I/O: time enters as ``now``, randomness as an argument."""
