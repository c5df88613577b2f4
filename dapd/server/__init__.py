"""DAP's resources over HTTP: one module per resource of the draft's appendix."""
