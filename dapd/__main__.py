"""``python -m dapd`` is ``dapd``."""

from dapd.cli import main

if __name__ == "__main__":
    main()
