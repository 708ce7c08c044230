"""The backends: they answer requests with a model in this process or through other servers."""
