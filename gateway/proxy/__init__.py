"""The journey of one call: `forward.py` reads as the story, the other modules are its parts."""
