"""OpenAI's HTTP API over a ``Backend``: requests to values, events to answers. Knows neither models nor the page."""
