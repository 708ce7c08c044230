"""Facts about models, without their weights."""
