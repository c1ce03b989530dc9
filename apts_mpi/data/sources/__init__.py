"""Sources: data sets as users have them, read and checked."""
