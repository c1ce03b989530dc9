"""Time to an accuracy over slow links."""
