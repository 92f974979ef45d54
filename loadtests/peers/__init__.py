"""What Obol is measured beside: nginx and a bare aiohttp pass-through; and how each server is started and stopped."""
