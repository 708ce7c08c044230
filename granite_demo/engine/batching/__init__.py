"""The batching engine: many requests in each step."""
