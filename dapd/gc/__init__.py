"""The garbage collector (rule D6): expiry, compaction, and space that goes back to the disk."""
