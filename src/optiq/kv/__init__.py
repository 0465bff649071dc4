"""Key/value caches that take fewer bits: recipes, cache kinds, kv_config.json, and their place in a model."""
