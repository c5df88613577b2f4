"""The loops that rotate HPKE keys and replace sealing keys."""
