"""What the viewer serves: the page, its JSON, its feeds. Reads only."""
