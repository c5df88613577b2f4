"""Structured logs with their context, and the registry of metrics."""
