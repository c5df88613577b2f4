"""The daemon as an operating system process: its user, its service manager, its configuration."""
