"""``python -m granite_demo`` is the command line."""

from granite_demo.cli.main import main

if __name__ == "__main__":
    main()
