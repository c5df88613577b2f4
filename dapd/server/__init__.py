"""Serve DAP over HTTP: listeners, routing, authentication, and one module for each resource."""
