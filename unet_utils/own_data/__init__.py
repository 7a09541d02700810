"""Photos and masks of your own, and those that labelling tools write."""
