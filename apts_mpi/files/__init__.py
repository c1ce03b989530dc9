"""Files that survive crashes and damage, whatever they hold."""
