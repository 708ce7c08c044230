"""OpenAI's HTTP API over a ``Backend``: bodies to requests, events to answers. Independent of models and the page."""
