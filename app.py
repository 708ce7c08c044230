"""Start the page: ``python app.py`` is ``granite-demo serve`` and takes the same flags."""

import sys

from granite_demo.cli.main import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
