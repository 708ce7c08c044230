"""Uses models on other servers with an OpenAI-compatible API, in place of a model in this process."""
