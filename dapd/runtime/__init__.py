"""What the server and the loops share: a ``Context``, which ``dapd.app`` builds, and its parts."""
