"""Structured logs with their context, and metrics."""
