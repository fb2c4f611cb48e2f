"""What several methods share that edit text states or map texts; not a method."""
