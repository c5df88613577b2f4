"""Loops that look after an Aggregator's keys."""
