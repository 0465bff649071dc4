"""Conversations: kept in SQLite, turned into requests, exported. Knows no pages."""
