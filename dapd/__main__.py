"""Run the ``dapd`` command as ``python -m dapd``."""

from dapd.cli import main

if __name__ == "__main__":
    main()
