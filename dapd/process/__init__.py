"""The daemon as a process of its machine: its user, its service manager, its configuration file."""
