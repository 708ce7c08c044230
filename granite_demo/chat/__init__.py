"""Conversations, documents, tools and exports, without a page or a model."""
