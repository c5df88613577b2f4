"""What the server and the loops share; built by ``dapd.app`` and handed in as a ``Context``."""
