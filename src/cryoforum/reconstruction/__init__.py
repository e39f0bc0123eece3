"""From particles with poses to maps, and how good they are."""
