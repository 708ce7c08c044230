"""The page. Thin: every tab turns widgets into a ``GenerationRequest`` and shows what the ``Backend`` yields."""
