"""What a chat is made of: conversations, documents, tools, exports. Knows no page."""
