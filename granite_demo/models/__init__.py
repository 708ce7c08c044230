"""Facts about models that need no weights: the catalogue, configurations and memory estimates."""
