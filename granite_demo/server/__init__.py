"""The HTTP side: the application that carries the page, and the process that serves it."""
