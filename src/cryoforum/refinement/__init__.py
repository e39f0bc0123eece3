"""From particles alone: a first map from no poses, then poses and half maps in turn."""
