"""The commands; each is a thin main over the packages."""
