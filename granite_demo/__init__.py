"""granite-demo: IBM Granite language models in the browser, on the command line and over HTTP."""

__version__ = "0.1.0"

__all__ = ["__version__"]
