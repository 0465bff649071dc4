"""Makers of the packaged text, one module per kind of source; ``scripts/build_text.py`` runs them."""
