"""Commands that measure what the project claims about speed and size."""
