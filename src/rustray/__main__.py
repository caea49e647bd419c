"""``python -m rustray``: the same as the command ``rustray``."""

from rustray.cli.main import main

if __name__ == "__main__":
    main()
