"""dapd as a system's service: its unit, its user, its notifications."""
