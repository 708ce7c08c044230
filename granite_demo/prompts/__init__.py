"""From a request to token ids."""
